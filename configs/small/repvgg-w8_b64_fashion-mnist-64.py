# RepVGG-A0 at 1/8 width, with its 3x3 branch alone.
_base_ = '../_base_/fashion-mnist-64.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(type='RepVGGPlain', arch='A0', in_channels=1, base_channels=8, out_indices=(3, )),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=160, loss=dict(type='CrossEntropyLoss')))
