_base_ = '../plain/resnetv1c50_8xb32-plain_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='DyRepBackbone',
        backbone=_base_.model.backbone,
        space='dbb',
        static=True,
        keep_norm=False,
        branch_init=dict(type='default', identity=True),
        exclude=('stem', )))
