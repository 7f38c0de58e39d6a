# mmseg's PSPNet, the plain twin of the others here
_base_ = ['mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py', '../_base_/dyrep.py']

# twins draw the same random numbers
default_hooks = dict(random_state=dict(type='RandomStateHook'))
randomness = dict(seed=1)
