# the variant that keeps the batch norm behind each block, as DyRep does
_base_ = './resnet18_8xb32-dbb_in1k.py'

model = dict(backbone=dict(keep_norm=True))
