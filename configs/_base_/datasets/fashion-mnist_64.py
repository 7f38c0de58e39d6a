# Fashion-MNIST at 64x64, for networks that begin with strides as those for ImageNet do.
_base_ = './fashion-mnist.py'

train_pipeline = [
    dict(type='Resize', scale=64),
    dict(type='RandomCrop', crop_size=64, padding=6),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='Resize', scale=64), dict(type='PackInputs')]

train_dataloader = dict(dataset=dict(indices=12000, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
