# The same with RepNAS: warm-up in the first 2 of 15 epochs, search in the next 4. Alpha makes some 750 steps in them
# instead of the 175,000 of ImageNet, so that they are longer.
_base_ = './vgg16-w8_b64_fashion-mnist.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='DyRepBackbone',
        backbone=_base_.model.backbone,
        static=True,
        keep_norm=False,
        input_shape=(32, 32)))
default_hooks = dict(repnas=dict(type='RepNASHook', warmup=2, search=4, alpha=dict(lr=0.01)))
