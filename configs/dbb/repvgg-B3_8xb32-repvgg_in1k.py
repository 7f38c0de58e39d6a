# RepVGG's own branches, 1x1 and residual, in every op from the start
_base_ = '../plain/repvgg-B3_8xb32-plain_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone, space='repvgg', static=True))
