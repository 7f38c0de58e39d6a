_base_ = '../plain/vgg16_1xb128-plain_cifar10.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone, input_shape=(32, 32)))
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, interval=15, end=500))
