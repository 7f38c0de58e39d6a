# The plain twin: VGG-16 at 1/8 width on 12,000 images of 32x32, minutes on two CPU cores.
_base_ = ['../_base_/models/vgg16_cifar.py', '../_base_/datasets/fashion-mnist.py', '../_base_/runtime.py']

model = dict(
    backbone=dict(in_channels=1, widen_factor=0.125),
    head=dict(in_channels=64, mid_channels=[64]))

# five poolings take 32x32
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='CenterCrop', crop_size=32, auto_pad=True), dict(type='PackInputs')]

train_dataloader = dict(dataset=dict(indices=12000, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type='CosineAnnealingLR', T_max=15, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=15, val_interval=1)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=1, max_keep_ckpts=2))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=1, deterministic=True)
