# mmpretrain's runtime with what this package adds: resumes are exact, and twins draw the same random numbers
_base_ = ['mmpretrain::_base_/default_runtime.py', './dyrep.py']

default_hooks = dict(random_state=dict(type='RandomStateHook'))
