# Table 4's ODBB: RepNAS searches which of the seven branches stay. No schedule of its authors is known for RepVGG;
# warm-up and search have the shares that they have of 150 epochs on ResNet (15 and 35).
_base_ = '../plain/repvgg-A2_8xb32-plain_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone, static=True, keep_norm=False))
default_hooks = dict(repnas=dict(type='RepNASHook', warmup=12, search=28))
