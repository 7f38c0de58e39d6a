_base_ = '../plain/mobilenet-v1_8xb32-plain_in1k.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone))
# t = 5 is ours: the paper gives it for 120 epochs and more
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, end=70))
