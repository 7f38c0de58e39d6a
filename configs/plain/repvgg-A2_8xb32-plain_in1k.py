# A2 with simple augmentation and 120 epochs, as in Section 5.1 and in mmpretrain
_base_ = [
    '../_base_/models/repvgg-plain.py', 'mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py',
    '../_base_/schedules/imagenet_bs256_coslr-120e.py', '../_base_/runtime.py'
]

model = dict(backbone=dict(arch='A2'), head=dict(in_channels=1408))
