# Section 5.1 for the larger RepVGG: 200 epochs. The 5 of warm-up are the authors' code's.
_base_ = './imagenet_bs256_coslr-120e.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=195, by_epoch=True, begin=5, end=200),
]
train_cfg = dict(max_epochs=200)
