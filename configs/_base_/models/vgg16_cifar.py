# VGG-16 as the paper's CIFAR experiments have it: 313.5 M MACs, 14.99 M parameters
model = dict(
    type='ImageClassifier',
    backbone=dict(type='VGG_CIFAR', depth=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=10,
        in_channels=512,
        mid_channels=[512],
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
