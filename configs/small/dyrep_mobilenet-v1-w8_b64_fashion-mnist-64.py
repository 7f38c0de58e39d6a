_base_ = './mobilenet-v1-w8_b64_fashion-mnist-64.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone))
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, interval=1))
