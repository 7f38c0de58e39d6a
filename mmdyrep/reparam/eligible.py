"""Which convolutions can be expanded, and why the others can't."""
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from .branches import BRANCHES
from .geometry import Geometry, symmetric_padding
from .lookalike import has_hooks
from .merging import is_plain_conv
from .probe import Flow
from .statistics import running

# names of the modules that hold the tensor at each place in memory
Owners = Dict[int, List[str]]


class Survey(NamedTuple):
    """Ops that can be expanded, with the batch norm behind each (None: own bias), and reasons of the others."""

    ops: Dict[str, Optional[str]]
    reasons: Dict[str, str]


def misfit_of_conv(conv: nn.Conv2d) -> str:
    """Why the convolution by itself can't be expanded; empty if it can."""
    kind = type(conv)
    if is_lazy(conv._parameters.get('weight')):
        return 'its weight is made by the first forward pass: run the network once before it is wrapped'
    if not is_plain_conv(kind):
        return f'{kind.__name__} is more than a plain convolution'
    if conv._parameters.get('weight') is None:
        return 'its weight is computed from other parameters (weight or spectral norm, parametrization)'
    if 'bias' not in conv._parameters:
        return 'its bias is computed from other parameters (pruning, parametrization)'
    own = [name for name in ('forward', '_conv_forward', '__call__') if name in vars(conv)]
    if own:
        return f'has a {own[0]} of its own, set on the instance'
    if has_hooks(conv):
        return 'has hooks, which may change what it computes'
    if min(conv.weight.shape[2:]) == 1:
        return 'kernel {}x{}'.format(*conv.weight.shape[2:])
    if conv.padding_mode != 'zeros':
        return f'padding_mode {conv.padding_mode!r}'
    try:
        symmetric_padding(conv)
    except ValueError as error:
        return str(error)
    return ''


def is_lazy(tensor: Any) -> bool:
    """Whether a parameter or buffer waits for the first forward pass to get its shape."""
    return isinstance(tensor, UninitializedTensorMixin)


def looks_like_conv(module: nn.Module) -> bool:
    """Whether it is a 2D convolution of a kind of its own: deformable, transposed."""
    weight = dict(module._parameters.items()).get('weight')  # compiled modules have no `get`
    return 'Conv' in type(module).__name__ and weight is not None and weight.dim() == 4


def misfit_of_norm(norm: _BatchNorm, conv: nn.Conv2d) -> str:
    """Why a batch norm can't take up the bias of the op in front of it; empty if it can."""
    if is_lazy(norm.running_mean):
        return 'the batch norm behind is made by the first forward pass'
    if norm.running_mean is None:
        return 'the batch norm behind keeps no running statistics'
    if len(norm.running_mean) != len(conv.weight):
        return 'the batch norm behind works on other channels'
    if has_hooks(norm, '_forward_pre_hooks'):
        return 'the batch norm behind has hooks, which may change what it reads'
    return ''


def is_switched(norm: str, flow: Flow, model: nn.Module) -> List[str]:
    """Batch norms that no pass has reached beside this one: a switch may put them in its place.

    They lie in the same module, or in the same list or dict of modules, and are of the same width.
    """
    parent, width = norm.rpartition('.')[0], len(running(cast(_BatchNorm, model.get_submodule(norm))).mean)
    around = {parent}
    if isinstance(model.get_submodule(parent), (nn.ModuleList, nn.ModuleDict)):
        around.add(parent.rpartition('.')[0])
    return [name for name, calls in flow.norm_calls.items() if not calls and name != norm
            and name.rpartition('.')[0] in around and model.get_submodule(name).num_features == width]


def survey(model: nn.Module, flow: Flow) -> Survey:
    """Sort the convolutions of a network without blocks by what a probe of it saw.

    Args:
        model (nn.Module): The network.
        flow (Flow): From :func:`~mmdyrep.reparam.probe.probe`.

    Returns:
        Survey: Ops in the order of the network.
    """
    found = Survey({}, {})
    owners, convs = _owners(model), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            convs[name] = module
        elif looks_like_conv(module):
            found.reasons[name] = f'{type(module).__name__} is no plain convolution'
    for name, conv in convs.items():
        if name not in flow.convs:
            found.reasons[name] = 'is not there in eval mode'
            continue
        use = flow.convs[name]
        reason = misfit_of_conv(conv) or _shared(name, conv, owners)
        behind = use.follower()
        if not reason and use.calls != 1:
            reason = f'called {use.calls} times in a forward pass'
        if not reason and behind is not None:
            reason = _misfit_behind(model, behind, conv, flow, owners)
            if reason and conv.bias is not None:
                reason, behind = '', None
        elif not reason and conv.bias is None:
            reason = 'no batch norm reads its output alone, and it has no bias of its own'
        if reason:
            found.reasons[name] = reason
        else:
            found.ops[name] = behind
    return found


def _misfit_behind(model: nn.Module, behind: str, conv: nn.Conv2d, flow: Flow, owners: Owners) -> str:
    if flow.norm_calls[behind] != 1:
        return f'the batch norm behind, {behind}, has several inputs'
    norm = cast(_BatchNorm, model.get_submodule(behind))
    reason = misfit_of_norm(norm, conv)
    shared = _shared(behind, norm, owners, ('running_mean',))
    reason = reason or (shared and f'the batch norm behind {shared}')
    others = [] if reason else is_switched(behind, flow, model)
    return f'{others[0]}, which was not reached, may be put in place of the batch norm behind' if others else reason


def _owners(model: nn.Module) -> Owners:
    """Modules that hold the parameter or buffer at each place in memory."""
    owners: Owners = {}
    for name, module in model.named_modules(remove_duplicate=False):
        # not `.weight`: a parametrized one is computed anew at each look, and looking may change it
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and not is_lazy(tensor):
                owners.setdefault(tensor.data_ptr() or id(tensor), []).append(name)
    return owners


def _shared(name: str, module: nn.Module, owners: Owners, keys: Sequence[str] = ('weight', 'bias')) -> str:
    for key in keys:
        tensor = module._parameters.get(key, module._buffers.get(key))
        if tensor is None or is_lazy(tensor):
            continue
        others = [other for other in owners[tensor.data_ptr() or id(tensor)] if other != name]
        if others:
            return f'shares its {key} with {", ".join(others)}'
    return ''


def fitting(names: Iterable[str], geometry: Geometry) -> List[str]:
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
