# Section 5.1: SGD, momentum 0.9, weight decay 1e-4, learning rate 0.1 with a cosine, 120 epochs
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs256_coslr.py'

# Of the rest the paper says nothing. As the authors' code, and RepVGG's: no weight decay on norms and biases; by kind
# and not by name as in mmpretrain's configs, so that it holds for the norms of new branches, too.
optim_wrapper = dict(
    optimizer=dict(nesterov=True), paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
param_scheduler = dict(T_max=120, end=120)
train_cfg = dict(max_epochs=120)
