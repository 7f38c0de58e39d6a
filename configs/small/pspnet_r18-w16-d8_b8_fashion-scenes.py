# PSPNet at small size, from the plain pre-trained backbone.
_base_ = ['mmseg::_base_/models/pspnet_r50-d8.py', 'mmseg::_base_/default_runtime.py',
          'mmseg::_base_/schedules/schedule_20k.py', '../_base_/dyrep.py',
          '../_base_/datasets/fashion-scenes_cityscapes.py']

norm_cfg = dict(type='BN', requires_grad=True)  # SyncBN needs a GPU
model = dict(
    data_preprocessor=dict(mean=[110.] * 3, std=[60.] * 3, size=(128, 128)),
    pretrained=None,
    backbone=dict(
        type='ResNet',  # not ResNetV1c, whose stem the pre-trained one does not have
        depth=18, stem_channels=16, base_channels=16, norm_cfg=norm_cfg,
        init_cfg=dict(
            type='Pretrained', checkpoint='{{$SMALL_CHAIN:work_dirs/small_chain}}/backbones/plain.pth')),
    decode_head=dict(in_channels=128, channels=32, num_classes=11, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=64, channels=16, num_classes=11, norm_cfg=norm_cfg))

optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=1e-4, by_epoch=False, end=1500)]
train_cfg = dict(max_iters=1500, val_interval=500)

default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(interval=250, max_keep_ckpts=2),
    random_state=dict(type='RandomStateHook'))
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=1, deterministic=True)
