"""The norm of the branches from a config."""
from functools import partial
from typing import Callable, Optional

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


def _make(norm_cfg: dict, channels: int) -> _BatchNorm:
    cfg = dict(norm_cfg)
    requires_grad = cfg.pop('requires_grad', True)
    kind = cfg.pop('type', None)
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    if not isinstance(kind, type) or not issubclass(kind, _BatchNorm):
        raise ValueError(f'norm_cfg must name a batch norm (BN, SyncBN), got {norm_cfg}')
    norm = kind(channels, **cfg)
    return norm.requires_grad_(requires_grad)
