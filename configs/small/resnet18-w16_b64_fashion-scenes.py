# Pre-training of the detectors' and segmentors' backbone: a ResNet-18 at 1/4 width, minutes on a CPU core.
_base_ = ['../_base_/datasets/fashion-scenes_classes.py', '../_base_/runtime.py']

model = dict(
    type='ImageClassifier',
    # keys and shapes are those of mmdet's and mmseg's ResNet
    backbone=dict(type='ResNet', depth=18, stem_channels=16, base_channels=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=128, loss=dict(type='CrossEntropyLoss')))

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type='CosineAnnealingLR', T_max=8, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=2)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=2))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=1, deterministic=True)
