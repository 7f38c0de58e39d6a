# RepVGG grown from its own three branches, as the authors' code does: the 3x3 convolution of each is what is expanded
_base_ = './repvgg-A2_8xb32_in1k.py'

model = dict(backbone=dict(backbone=dict(type='RepVGG')))
