# RepVGG's own branches, 1x1 and residual, in every block from the start
_base_ = './repvgg-w8_b64_fashion-mnist-64.py'

model = dict(backbone=dict(type='RepVGG'))
