# RepVGG's: no weight decay on norms and biases
_base_ = './imagenet_bs256_coslr-120e.py'

# by kind and not by name as in mmpretrain's configs, so that it holds for the norms of new branches, too
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
