# the variant that keeps the batch norm behind each block, as DyRep does
_base_ = './vgg16_1xb128-dbb_cifar10.py'

model = dict(backbone=dict(keep_norm=True))
