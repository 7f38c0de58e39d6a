# Rep stage C+D (Table 5): the backbone as pre-training with DyRep has grown it; its structure goes on changing
_base_ = './faster-rcnn_r50-dyrep-d_fpn_1x_coco.py'

# a checkpoint of configs/dyrep/resnet50_8xb32_in1k.py as it is, not fused
pretrained = 'work_dirs/resnet50_8xb32_in1k/epoch_120.pth'

model = dict(backbone=dict(pretrained=pretrained))
