# The same training with DyRep. Updates every epoch: it grows several times and cuts within minutes.
_base_ = './resnet18-w8_b64_fashion-mnist.py'

model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone=_base_.model.backbone))

# branches differ by more than lambda in the first epochs of so short a training, hence t = 1
default_hooks = dict(dyrep=dict(_base_.dyrep_hook, interval=1))
