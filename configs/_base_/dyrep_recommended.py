# What this package's own small trainings take in place of the paper's settings: docs/results.md has the figures and
# what they do not show. The paper's, in dyrep.py, stay the default. A config has this beside its plain twin:
#   _base_ = ['../plain/resnet50_8xb32-plain_in1k.py', '../_base_/dyrep_recommended.py']
#   model = dict(backbone=dict(
#       _delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone, **_base_.recommended_backbone))
#   default_hooks = dict(dyrep=_base_.recommended_hook)
recommended_hook = dict(
    type='DyRepHook',
    # early, t = 8 of 120 epochs until 32: branches that come late have no time. Set both for another length
    interval=8,
    end=32,
    # as many ops in a quarter of the training as it would be in half of it
    num_grow=2,
    # not synflow, which ranks rounding residue in front of norms (docs/saliency.md)
    metric='snip_bn',
    # nothing is removed: in blocks that run as one convolution a branch costs next to nothing
    dep=None,
    calibration_batches=20)
recommended_backbone = dict(
    # not random kernels behind gamma 0.01, which hardly turn: parts of the op's own kernel
    branch_init='split',
    # one convolution a block in training, too; statistics are fixed between updates
    online=True)
