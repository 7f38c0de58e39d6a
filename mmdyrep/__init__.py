"""DyRep: dynamic structural re-parameterization (CVPR 2022) for the OpenMMLab libraries.

``mmdyrep.reparam`` and ``mmdyrep.dynamics`` are pure PyTorch; the rest needs mmengine.
"""
from importlib import import_module
from importlib.util import find_spec

from .version import __version__

__all__ = ['DyRepBackbone', 'DyRepHook', 'RandomStateHook', '__version__']

if find_spec('mmengine') is not None:
    from .engine import DyRepHook, RandomStateHook
    from .models import DyRepBackbone
    if find_spec('mmpretrain') is not None:
        import_module('mmdyrep.models.repvgg_plain')
        import_module('mmdyrep.models.vgg_cifar')
