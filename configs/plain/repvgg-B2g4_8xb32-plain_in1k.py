# The larger ones with AutoAugment, label smoothing and 200 epochs (Section 5.1)
_base_ = [
    '../_base_/models/repvgg-plain.py', '../_base_/datasets/imagenet_bs32_autoaug.py',
    '../_base_/schedules/imagenet_bs256_coslr-200e_warmup.py', '../_base_/runtime.py'
]

model = dict(
    backbone=dict(arch='B2g4'),
    head=dict(
        in_channels=2560,
        loss=dict(
            _delete_=True,
            type='LabelSmoothLoss',
            loss_weight=1.0,
            label_smooth_val=0.1,
            mode='classy_vision',
            num_classes=1000)))
