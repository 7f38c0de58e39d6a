"""DyRep: dynamic structural re-parameterization (CVPR 2022) for the OpenMMLab libraries.

``mmdyrep.reparam`` and ``mmdyrep.dynamics`` are pure PyTorch; the rest needs mmengine.
"""
from importlib import import_module
from typing import Any

from .libraries import (
    check_libraries,
    is_there,
    missing,
    name_configs,
    naming_the_library,
    without_lite_warnings,
)
from .version import __version__, version_info

__all__ = ['DyRepBackbone', 'DyRepHook', 'RandomStateHook', 'RepNASHook', '__version__', 'version_info']

check_libraries()
if is_there('mmengine'):
    from .engine import DyRepHook, RandomStateHook, RepNASHook
    from .models import DyRepBackbone
    name_configs()
    if is_there('mmpretrain'):
        with naming_the_library('mmpretrain'):
            import_module('mmpretrain')
        with without_lite_warnings():
            import_module('mmdyrep.models.repvgg_plain')
            import_module('mmdyrep.models.vgg_cifar')


def __getattr__(name: str) -> Any:
    if name in __all__:
        raise missing(name, 'mmengine')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
