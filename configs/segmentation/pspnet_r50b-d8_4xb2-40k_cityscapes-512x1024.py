# The plain twin with the 7x7 stem, mmseg's r50b: takes the backbone of configs/dyrep/resnet50_8xb32_in1k.py
_base_ = './pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'

model = dict(pretrained='torchvision://resnet50', backbone=dict(type='ResNet'))
