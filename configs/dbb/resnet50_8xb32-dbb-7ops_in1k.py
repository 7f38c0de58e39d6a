# Table 8: the seven branches of DyRep in every op from the start
_base_ = './resnet50_8xb32-dbb_in1k.py'

model = dict(backbone=dict(space='dyrep'))
