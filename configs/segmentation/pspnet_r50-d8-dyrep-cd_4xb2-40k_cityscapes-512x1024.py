# Rep stage C+D (Table 5): the backbone as pre-training with DyRep has grown it; its structure goes on changing
_base_ = './pspnet_r50-d8-dyrep-d_4xb2-40k_cityscapes-512x1024.py'

# a checkpoint of configs/dyrep/resnetv1c50_8xb32_in1k.py as it is, not fused
pretrained = 'work_dirs/resnetv1c50_8xb32_in1k/epoch_120.pth'

model = dict(pretrained=pretrained)
