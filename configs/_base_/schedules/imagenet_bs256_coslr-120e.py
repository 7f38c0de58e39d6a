# Section 5.1: SGD, momentum 0.9, weight decay 1e-4, learning rate 0.1 with a cosine, 120 epochs
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256_coslr.py'

param_scheduler = dict(T_max=120, end=120)
train_cfg = dict(max_epochs=120)
