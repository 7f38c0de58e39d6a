"""Initial weights of a backbone with blocks."""
from typing import Any, Callable, Mapping, Optional

import torch
from mmengine.model import BaseModule, initialize
from torch import nn

from mmdyrep import reparam

from . import loading


def init_weights(backbone: nn.Module, inherited: Optional[Callable[[], None]], options: Mapping[str, Any]) -> None:
    """What the inner class does, and ``init_cfg`` for one that knows none; then branches start as they are to.

    Args:
        backbone (nn.Module): The wrapped one.
        inherited (callable, optional): ``init_weights`` of its inner class.
        options (Mapping): ``start``, what branches start from, and ``gamma``, the first scale of their last norms.
    """
    cfg, done = getattr(backbone, 'init_cfg', None), getattr(backbone, 'is_init', False)
    if cfg and not done:
        backbone.init_cfg = cfg = loading.with_prefix(cfg, backbone)
    if inherited is not None:
        inherited()
    own = bool(cfg) and not isinstance(backbone, BaseModule)
    if own:
        initialize(backbone, cfg)
    # a second call of BaseModule's changes nothing, and weights out of a file come with their gamma
    if not done and (inherited is not None or own) and not loading.pretrained_cfgs(cfg):
        with torch.no_grad():
            for block in reparam.surgery.outer_blocks(backbone).values():
                options['start'].restart(block, options['gamma'])


def join_initialization(backbone: nn.Module) -> None:
    """Enter new parameters, in the middle of ``init_weights``, into the table where mmengine looks up each."""
    info = getattr(backbone, '_params_init_info', None)
    if info is None:
        return
    for module in backbone.modules():
        module._params_init_info = info
    for parameter in backbone.parameters():
        if parameter not in info:
            info[parameter] = dict(init_info='Re-parameterized', tmp_mean_value=parameter.data.mean())
