# The same pre-training with DyRep, an update after each epoch.
_base_ = './resnet18-w16_b64_fashion-scenes.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone))
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, interval=1))
