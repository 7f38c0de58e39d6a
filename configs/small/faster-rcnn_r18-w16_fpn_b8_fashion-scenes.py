# Faster R-CNN with FPN at small size, from the plain pre-trained backbone.
_base_ = ['mmdet::_base_/models/faster-rcnn_r50_fpn.py', 'mmdet::_base_/default_runtime.py', '../_base_/dyrep.py',
          '../_base_/datasets/fashion-scenes_coco.py']

model = dict(
    data_preprocessor=dict(mean=[110.] * 3, std=[60.] * 3),
    backbone=dict(
        depth=18, stem_channels=16, base_channels=16,
        init_cfg=dict(checkpoint='{{$SMALL_CHAIN:work_dirs/small_chain}}/backbones/plain.pth')),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32, num_outs=4),
    rpn_head=dict(in_channels=32, feat_channels=32, anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32, featmap_strides=[4, 8], finest_scale=28),
        bbox_head=dict(in_channels=32, fc_out_channels=128, num_classes=10)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=30)))

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
                     clip_grad=dict(max_norm=10))
param_scheduler = [dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
                   dict(type='CosineAnnealingLR', T_max=5, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=5, val_interval=5)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    logger=dict(interval=25), checkpoint=dict(max_keep_ckpts=2), random_state=dict(type='RandomStateHook'))
randomness = dict(seed=1, deterministic=True)
