# Stage D of Table 5: from the plain pre-trained backbone, DyRep in the training of the detector.
_base_ = './faster-rcnn_r18-w16_fpn_b8_fashion-scenes.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone))
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, interval=1))
