# For mmseg's PSPNet: its ResNetV1c, whose stem has other keys than mmpretrain's
_base_ = './resnet50_8xb32-plain_in1k.py'

model = dict(backbone=dict(type='mmseg.ResNetV1c'))
