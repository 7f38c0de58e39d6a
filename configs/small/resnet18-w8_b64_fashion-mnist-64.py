# ResNet-18 with its 7x7 stem at 1/8 width: the small networks of Tables 3 and 8; depth is an option.
_base_ = '../_base_/fashion-mnist-64.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, in_channels=1, stem_channels=8, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')))
