# Stage C+D of Table 5: the structure of the pre-training comes with its checkpoint and goes on growing.
_base_ = './faster-rcnn_r18-w16-dyrep-d_fpn_b8_fashion-scenes.py'

model = dict(backbone=dict(pretrained='{{$SMALL_CHAIN:work_dirs/small_chain}}/backbones/dyrep_augmented.pth'))
