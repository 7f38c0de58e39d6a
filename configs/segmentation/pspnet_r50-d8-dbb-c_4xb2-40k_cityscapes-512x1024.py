# Rep stage C with DBB (Table 5): a backbone that was pre-trained with DBB and fused
_base_ = './pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'

# tools/deploy_fuse.py configs/dbb/resnetv1c50_8xb32-dbb_in1k.py CHECKPOINT THIS_FILE --backbone-only
pretrained = 'work_dirs/resnetv1c50_8xb32-dbb_in1k/backbone.pth'

model = dict(pretrained=pretrained)
