# mmpretrain's ImageNet with AutoAugment, 32 images a GPU
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_autoaug.py'

train_dataloader = dict(batch_size=32)
val_dataloader = dict(batch_size=32)
test_dataloader = dict(batch_size=32)
