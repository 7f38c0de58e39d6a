# Rep stage C (Table 5): a backbone that was pre-trained with DyRep and fused
_base_ = './faster-rcnn_r50_fpn_1x_coco.py'

# tools/deploy_fuse.py configs/dyrep/resnet50_8xb32_in1k.py CHECKPOINT THIS_FILE --backbone-only
pretrained = 'work_dirs/resnet50_8xb32_in1k/backbone.pth'

model = dict(backbone=dict(init_cfg=dict(checkpoint=pretrained)))
