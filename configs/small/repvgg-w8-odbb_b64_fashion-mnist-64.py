# RepNAS: warm-up in the first 2 of 15 epochs, search in the next 4
_base_ = './repvgg-w8_b64_fashion-mnist-64.py'

model = dict(
    backbone=dict(
        _delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone, static=True, keep_norm=False))
default_hooks = dict(repnas=dict(type='RepNASHook', warmup=2, search=4, alpha=dict(lr=0.02)))
