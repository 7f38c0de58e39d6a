_base_ = '../plain/vgg16_1xb128-plain_cifar10.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='DyRepBackbone',
        backbone=_base_.model.backbone,
        space='dbb',
        static=True,
        keep_norm=False,
        branch_init=dict(type='default', identity=True),
        input_shape=(32, 32)))
