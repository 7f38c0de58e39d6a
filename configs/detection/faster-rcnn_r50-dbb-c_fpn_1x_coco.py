# Rep stage C with DBB (Table 5): a backbone that was pre-trained with DBB and fused
_base_ = './faster-rcnn_r50_fpn_1x_coco.py'

# tools/deploy_fuse.py configs/dbb/resnet50_8xb32-dbb_in1k.py CHECKPOINT THIS_FILE --backbone-only
pretrained = 'work_dirs/resnet50_8xb32-dbb_in1k/backbone.pth'

model = dict(backbone=dict(init_cfg=dict(checkpoint=pretrained)))
