_base_ = [
    'mmpretrain::_base_/models/resnet18.py', '../_base_/datasets/imagenet_bs32_color-jitter.py',
    '../_base_/schedules/imagenet_bs256_coslr-120e.py', '../_base_/runtime.py'
]
