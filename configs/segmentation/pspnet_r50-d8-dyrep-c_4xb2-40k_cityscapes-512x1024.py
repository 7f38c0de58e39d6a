# Rep stage C (Table 5): a backbone that was pre-trained with DyRep and fused
_base_ = './pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'

# tools/deploy_fuse.py configs/dyrep/resnetv1c50_8xb32_in1k.py CHECKPOINT THIS_FILE --backbone-only
pretrained = 'work_dirs/resnetv1c50_8xb32_in1k/backbone.pth'

model = dict(pretrained=pretrained)
