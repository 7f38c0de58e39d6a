# The same with DyRep: an update every epoch, since there are 15 instead of 600.
_base_ = './vgg16-w8_b64_fashion-mnist.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone, input_shape=(32, 32)))
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, interval=1))
