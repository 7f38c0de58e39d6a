"""The norm of the branches from a config."""
import logging
from functools import partial
from typing import Callable, Optional, Tuple

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.reparam.branches import MakeNorm


def norm_maker(norm_cfg: Optional[dict]) -> Optional[Callable[[Optional[_BatchNorm]], MakeNorm]]:
    """What makes a maker of norms out of the norm behind an op; None leaves that to the surgery."""
    return partial(_fixed, norm_cfg) if norm_cfg is not None else None


def _fixed(norm_cfg: dict, behind: Optional[_BatchNorm]) -> MakeNorm:
    if type(behind).__name__ == '_BatchNormXd':
        # the network's SyncBN has been reverted (mmengine), so this is to run where SyncBN can't
        norm_cfg = {**norm_cfg, 'type': nn.BatchNorm2d}
    return partial(_make, norm_cfg)


def check_norm(norm_cfg: dict) -> None:
    """Refuse a config that makes no batch norm which a block can work with.

    Raises:
        ValueError: With the config and what it lacks.
    """
    norm = _make(norm_cfg, 1)
    if not any(isinstance(norm, kind) and type(norm).forward is kind.forward
               for kind in (nn.BatchNorm2d, nn.SyncBatchNorm)):
        raise ValueError(f'norm_cfg must name nn.BatchNorm2d (BN) or nn.SyncBatchNorm (SyncBN), got {norm_cfg}, which '
                         'may compute something else')
    if not norm.affine or not norm.track_running_stats:
        raise ValueError('norm_cfg must keep weight, bias and running statistics (affine, track_running_stats), '
                         f'got {norm_cfg}')


def warn_if_unlike(norm_cfg: Optional[dict], inner: nn.Module) -> None:
    """Say that ``norm_cfg`` reaches the branches alone, where it is none that the backbone's own norms have.

    A config, or ``--cfg-options model.backbone.norm_cfg...``, written for the backbone itself ends up at the wrapper
    around it. The two can't be told apart, so the wrapper's meaning holds, and is said.
    """
    norms = [module for module in inner.modules() if isinstance(module, _BatchNorm)]
    if norm_cfg is None or not norms:
        return
    mine = _look_of(_make(norm_cfg, 1))
    if not any(_look_of(norm) == mine for norm in norms):
        kind, eps, momentum, learns = _look_of(norms[0])
        print_log(
            f'DyRepBackbone: norm_cfg={dict(norm_cfg)} is that of the new branches alone; the norms of '
            f'{type(inner).__name__} stay as they are ({kind}, eps={eps}, momentum={momentum}, requires_grad={learns}).'
            ' If it was meant for these, write it into the inner config: model.backbone.backbone.norm_cfg',
            logger='current', level=logging.WARNING)


def _look_of(norm: _BatchNorm) -> Tuple[str, float, Optional[float], bool]:
    learns = norm.weight is None or norm.weight.requires_grad
    return type(norm).__name__, norm.eps, norm.momentum, learns


def _make(norm_cfg: dict, channels: int) -> _BatchNorm:
    cfg = dict(norm_cfg)
    requires_grad = cfg.pop('requires_grad', True)
    kind = cfg.pop('type', None)
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    if not isinstance(kind, type) or not issubclass(kind, _BatchNorm):
        raise ValueError(f'norm_cfg must name a batch norm (BN, SyncBN), got {norm_cfg}')
    norm = kind(channels, **cfg)
    return norm.requires_grad_(requires_grad)
