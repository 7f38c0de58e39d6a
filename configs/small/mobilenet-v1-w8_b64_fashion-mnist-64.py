# MobileNet at 1/8 width.
_base_ = '../_base_/fashion-mnist-64.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(type='MobileNetV1', widen_factor=0.125, in_channels=1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=128, loss=dict(type='CrossEntropyLoss')))
