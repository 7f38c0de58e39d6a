_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

# of augmentation the paper says nothing; the authors' code has Cutout, which fills with what is zero once normalized
train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(type='Cutout', shape=16, pad_val=[round(value) for value in _base_.data_preprocessor.mean], prob=1.0),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=128)
test_dataloader = dict(batch_size=128)
