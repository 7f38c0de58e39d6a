# RepVGG with its 3x3 branch alone; fused, it is mmpretrain's RepVGG(deploy=True)
_base_ = 'mmpretrain::_base_/models/repvgg-A0_in1k.py'

model = dict(backbone=dict(type='RepVGGPlain'))
