# mmpretrain's ImageNet with AutoAugment, the word of Section 5.1, 32 images a GPU. Random erasing is of the authors'
# code, where it stands beside RandAugment.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_autoaug.py'

train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(
        type='RandomErasing',
        erase_prob=0.2,
        mode='const',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=_base_.data_preprocessor.mean[::-1]),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=32)
test_dataloader = dict(batch_size=32)
