_base_ = './mobilenet-v1-w8_b64_fashion-mnist-64.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='DyRepBackbone',
        backbone=_base_.model.backbone,
        space='dbb',
        static=True,
        keep_norm=False,
        branch_init=dict(type='default', identity=True)))
