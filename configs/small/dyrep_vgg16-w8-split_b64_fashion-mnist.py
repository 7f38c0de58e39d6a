# The same with branches that start as parts of the op's own kernel.
_base_ = './dyrep_vgg16-w8_b64_fashion-mnist.py'

model = dict(backbone=dict(branch_init='split'))
