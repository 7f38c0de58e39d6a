# The same with DBB in every op from the start, without the norm behind, as DBB has it.
_base_ = './resnet18-w8_b64_fashion-mnist.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='DyRepBackbone',
        backbone=_base_.model.backbone,
        space='dbb',
        static=True,
        keep_norm=False,
        branch_init=dict(type='default', identity=True)))
