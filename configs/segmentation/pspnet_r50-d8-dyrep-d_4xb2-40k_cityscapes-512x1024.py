# Rep stage D (Table 5): plain weights, DyRep in the training of the segmentor
_base_ = './pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone))
# t = 2000 iterations is ours, the paper gives none
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, by_epoch=False, interval=2000))
