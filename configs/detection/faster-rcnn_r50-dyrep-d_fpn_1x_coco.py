# Rep stage D (Table 5): plain weights, DyRep in the training of the detector
_base_ = './faster-rcnn_r50_fpn_1x_coco.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone))
# t = 1 epoch is ours, the paper gives none
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, interval=1))
