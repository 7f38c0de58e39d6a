# mmpretrain's runtime with what this package adds: resumes are exact, and twins draw the same random numbers
_base_ = ['mmpretrain::_base_/default_runtime.py', './dyrep.py']

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3),
    random_state=dict(type='RandomStateHook'))

# the same for twins; mmengine would draw one for each run
randomness = dict(seed=1)
