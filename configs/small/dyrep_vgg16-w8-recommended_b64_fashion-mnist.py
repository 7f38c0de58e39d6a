# The same with the settings of this package's own studies: two ops at each of the first four of fifteen epochs.
_base_ = ['./vgg16-w8_b64_fashion-mnist.py', '../_base_/dyrep_recommended.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='DyRepBackbone',
        backbone=_base_.model.backbone,
        input_shape=(32, 32),
        **_base_.recommended_backbone))
default_hooks = dict(dyrep=dict(_base_.recommended_hook, interval=1, end=4))
