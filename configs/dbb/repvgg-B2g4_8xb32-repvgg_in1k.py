# RepVGG's own branches, 1x1 and residual, in every block from the start: mmpretrain's RepVGG
_base_ = '../plain/repvgg-B2g4_8xb32-plain_in1k.py'

model = dict(backbone=dict(type='RepVGG'))
