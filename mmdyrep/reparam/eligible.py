"""Which convolutions can be expanded, and why the others can't."""
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .branches import BRANCHES
from .geometry import Geometry, symmetric_padding
from .probe import Flow

# Subclasses whose forward is the plain convolution on every non-empty input.
PLAIN_CONVS = ('mmcv.cnn.bricks.wrappers.Conv2d',)


class Survey(NamedTuple):
    """Ops that can be expanded, with the batch norm behind each (None: own bias), and reasons of the others."""

    ops: Dict[str, Optional[str]]
    reasons: Dict[str, str]


def misfit_of_conv(conv: nn.Conv2d) -> str:
    """Why the convolution by itself can't be expanded; empty if it can."""
    kind = type(conv)
    plain = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    if not plain and f'{kind.__module__}.{kind.__qualname__}' not in PLAIN_CONVS:
        return f'{kind.__name__} is more than a plain convolution'
    if conv._parameters.get('weight') is None:
        return 'its weight is computed from other parameters (weight or spectral norm, parametrization)'
    if min(conv.kernel_size) == 1:
        return 'kernel {}x{}'.format(*conv.kernel_size)
    if conv.padding_mode != 'zeros':
        return f'padding_mode {conv.padding_mode!r}'
    try:
        symmetric_padding(conv)
    except ValueError as error:
        return str(error)
    return ''


def looks_like_conv(module: nn.Module) -> bool:
    """Whether it is a 2D convolution of a kind of its own: deformable, transposed."""
    weight = module._parameters.get('weight')
    return 'Conv' in type(module).__name__ and weight is not None and weight.dim() == 4


def misfit_of_norm(norm: _BatchNorm, conv: nn.Conv2d) -> str:
    """Why a batch norm can't take up the bias of the op in front of it; empty if it can."""
    if norm.running_mean is None:
        return 'the batch norm behind keeps no running statistics'
    if norm.num_features != conv.out_channels:
        return 'the batch norm behind works on other channels'
    return ''


def survey(model: nn.Module, flow: Flow) -> Survey:
    """Sort the convolutions of a network without blocks by what a probe of it saw.

    Args:
        model (nn.Module): The network.
        flow (Flow): From :func:`~mmdyrep.reparam.probe.probe`.

    Returns:
        Survey: Ops in the order of the network.
    """
    found = Survey({}, {})
    owners: Dict[int, List[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        # not `.weight`: a parametrized one is computed anew at each look, and looking may change it
        weight = module._parameters.get('weight') if isinstance(module, nn.Conv2d) else None
        if weight is not None:
            owners.setdefault(id(weight), []).append(name)
        elif not isinstance(module, nn.Conv2d) and looks_like_conv(module):
            found.reasons[name] = f'{type(module).__name__} is no plain convolution'
    for name, use in flow.convs.items():
        conv = model.get_submodule(name)
        reason = misfit_of_conv(conv)
        behind = use.follower()
        shared = [owner for owner in owners.get(id(conv._parameters.get('weight')), ()) if owner != name]
        if reason:
            pass
        elif shared:
            reason = f'shares its weight with {", ".join(shared)}'
        elif use.calls != 1:
            reason = f'called {use.calls} times in a forward pass'
        elif behind is not None:
            if flow.norm_calls[behind] != 1:
                reason = f'the batch norm behind, {behind}, has several inputs'
            else:
                reason = misfit_of_norm(model.get_submodule(behind), conv)
            if reason and conv.bias is not None:
                reason, behind = '', None
        elif conv.bias is None:
            reason = 'no batch norm reads its output alone, and it has no bias of its own'
        if reason:
            found.reasons[name] = reason
        else:
            found.ops[name] = behind
    return found


def fitting(names: List[str], geometry: Geometry) -> List[str]:
    """Those of the branches, the original left out, that can stand beside such a convolution."""
    return [name for name in names if name != 'kxk' and not BRANCHES[name].misfit(geometry)]


def check_branches(names: Sequence[str], geometry: Geometry, where: str) -> None:
    """Refuse branches that are unknown or can't stand beside such a convolution.

    Raises:
        ValueError: With ``where``, the branch and the reason.
    """
    for name in names:
        reason = BRANCHES[name].misfit(geometry) if name in BRANCHES else f'is unknown; there are {list(BRANCHES)}'
        if reason:
            raise ValueError(f'{where}: branch {name!r} {reason}')


def by_reason(reasons: Mapping[str, str]) -> Dict[str, List[str]]:
    """Convolutions of each reason."""
    names: Dict[str, List[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return names


def in_short(reasons: Mapping[str, str]) -> str:
    """Reasons by convolution counted, the five most frequent first."""
    counted = sorted(by_reason(reasons).items(), key=lambda item: -len(item[1]))
    return '; '.join(f'{len(same)} x {reason} ({same[0]}{", ..." if same[1:] else ""})' for reason, same in counted[:5])
