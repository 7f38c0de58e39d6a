_base_ = '../plain/repvgg-A2_8xb32-plain_in1k.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone))
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, end=100))
