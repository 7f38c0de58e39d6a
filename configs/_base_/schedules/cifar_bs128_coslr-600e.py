# Section 5.1: SGD, momentum 0.9, weight decay 1e-4, learning rate 0.1 with a cosine, 600 epochs of batches of 128
_base_ = 'mmpretrain::_base_/schedules/cifar10_bs128.py'

param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=600, by_epoch=True, begin=0, end=600)
train_cfg = dict(max_epochs=600)
