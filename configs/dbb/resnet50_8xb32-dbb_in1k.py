_base_ = '../plain/resnet50_8xb32-plain_in1k.py'

# the 7x7 stem stays plain, or the costs are not those of Table 3
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
