_base_ = [
    '../_base_/models/vgg16_cifar.py', '../_base_/datasets/cifar10_bs128.py',
    '../_base_/schedules/cifar_bs128_coslr-600e.py', '../_base_/runtime.py'
]
