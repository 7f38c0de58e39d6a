# Stage C of Table 5: the backbone was pre-trained with DyRep and fused.
_base_ = './pspnet_r18-w16-d8_b8_fashion-scenes.py'

model = dict(backbone=dict(init_cfg=dict(
    checkpoint='{{$SMALL_CHAIN:work_dirs/small_chain}}/backbones/dyrep_fused.pth')))
