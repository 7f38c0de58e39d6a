# Stage D of Table 5: from the plain pre-trained backbone, DyRep in the training of the segmentor.
_base_ = './pspnet_r18-w16-d8_b8_fashion-scenes.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone))
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, by_epoch=False, interval=250))
