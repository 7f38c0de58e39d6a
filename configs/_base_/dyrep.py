# What every config of this package inherits, plain twins included. A config that trains with DyRep adds
#   default_hooks = dict(dyrep=_base_.dyrep_hook)
# and a child of that changes single keys: default_hooks = dict(dyrep=dict(interval=15)).
# (In default_hooks it merges with what a config has; custom_hooks is a list and would be replaced.)
custom_imports = dict(imports=['mmdyrep'], allow_failed_imports=False)

dyrep_hook = dict(
    type='DyRepHook',
    interval=5,
    metric='synflow',
    num_grow=1,
    dep=dict(threshold=0.02),
    calibration_batches=20)
