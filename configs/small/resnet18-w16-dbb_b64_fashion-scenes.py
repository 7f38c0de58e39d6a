# The same pre-training with DBB in every 3x3 from the start.
_base_ = './resnet18-w16_b64_fashion-scenes.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='DyRepBackbone',
        backbone=_base_.model.backbone,
        space='dbb',
        static=True,
        keep_norm=False,
        branch_init=dict(type='default', identity=True),
        exclude=('conv1', )))
