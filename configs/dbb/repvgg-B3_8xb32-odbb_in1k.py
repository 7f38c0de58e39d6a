# Table 4's ODBB, as of RepVGG-A2, in the 200 epochs of B3
_base_ = '../plain/repvgg-B3_8xb32-plain_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone, static=True, keep_norm=False))
default_hooks = dict(repnas=dict(type='RepNASHook', warmup=20, search=47))
