_base_ = [
    '../_base_/models/mobilenet-v1.py', '../_base_/datasets/imagenet_bs32_color-jitter.py',
    '../_base_/schedules/imagenet_bs256_coslr-120e.py', '../_base_/runtime.py'
]

optim_wrapper = dict(optimizer=dict(weight_decay=4e-5))
param_scheduler = dict(T_max=90, end=90)
train_cfg = dict(max_epochs=90)
