"""How other code names the parts of a block in a state dict, and what such a block computes.

Known are the blocks of DyRep's authors, of DBB, and of RepVGG, as published and as mmpretrain has them.
"""
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdyrep.reparam import Geometry
from mmdyrep.reparam.kernels import identity

State = Mapping[str, Tensor]
# of every norm in that code
EPS = 1e-5


class Names(NamedTuple):
    """Names of a branch's parts: an inner pair, the last convolution, the last norm; empty where there is none."""

    conv1: str = ''
    bn1: str = ''
    conv: str = ''
    bn: str = ''
    # a 1x1 convolution that is stored as its difference from the identity
    difference: str = ''


def _pair(path: str, conv: str = 'conv', bn: str = 'bn') -> Names:
    return Names(conv=f'{path}.{conv}', bn=f'{path}.{bn}')


def _inner(path: str, difference: str = '') -> Names:
    return Names(f'{path}.conv1', f'{path}.bn1.bn', f'{path}.conv2', f'{path}.bn2', difference)


def _average(path: str) -> Names:
    return Names(conv1=f'{path}.conv', bn1=f'{path}.bn.bn', bn=f'{path}.avgbn')


LAYOUTS: Dict[str, Dict[str, Names]] = {
    "the DyRep authors'": {
        'kxk': _pair('dbb_kxk'), '1x1': _pair('dbb_1x1'), '1x1_kxk': _inner('dbb_1x1_kxk'),
        '1x1_avg': _average('dbb_1x1_avg'), '1xk': _pair('dbb_1xk'), 'kx1': _pair('dbb_kx1'),
        'residual': Names(bn='dbb_id')},
    'DBB': {
        'kxk': _pair('dbb_origin'), '1x1': _pair('dbb_1x1'),
        '1x1_kxk': _inner('dbb_1x1_kxk', 'dbb_1x1_kxk.idconv1'), '1x1_avg': _average('dbb_avg')},
    'RepVGG': {
        'kxk': _pair('rbr_dense'), '1x1': _pair('rbr_1x1'), 'residual': Names(bn='rbr_identity')},
    "mmpretrain's RepVGG": {
        'kxk': _pair('branch_3x3', bn='norm'), '1x1': _pair('branch_1x1', bn='norm'),
        'residual': Names(bn='branch_norm')},
}
# blocks that have been fused already: a convolution with a bias
FUSED = ('conv_deployed', 'dbb_reparam', 'rbr_reparam', 'branch_reparam')


@dataclass
class ForeignConv:
    """Weight and bias of a convolution."""

    weight: Tensor
    bias: Optional[Tensor] = None


@dataclass
class ForeignBranch:
    """A branch of another code: an inner pair, a convolution or a block, a norm."""

    norm: Dict[str, Tensor]
    last: Union[ForeignConv, 'ForeignBlock', None] = None
    first: Optional[ForeignConv] = None
    first_norm: Dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ForeignBlock:
    """A block of another code: its layout, and its branches by our names."""

    layout: str
    branches: Dict[str, ForeignBranch]


def split(state: State) -> Tuple[Dict[str, ForeignBlock], Dict[str, Tensor]]:
    """Divide a state dict into blocks, by name, and what lies in none.

    Returns:
        tuple[dict, dict]: Outermost blocks; tensors outside of them, fused blocks among these as convolutions.
    """
    found: Dict[str, ForeignBlock] = {}
    used: List[str] = []
    for layout, names in LAYOUTS.items():
        end = f'.{names["kxk"].bn}.weight'
        roots = sorted(key[:-len(end)] for key in state if key.endswith(end))
        for root in roots:
            if not any(root.startswith(f'{outer}.') for outer in found):
                found[root] = _block(state, root, layout)
                used += _keys(state, root, layout)
    outside = {key: value for key, value in state.items() if key not in set(used)}
    return found, {_unfused(key): value for key, value in outside.items()}


def _unfused(key: str) -> str:
    for name in FUSED:
        key = key.replace(f'.{name}.', '.')
    return key


def _keys(state: State, root: str, layout: str) -> List[str]:
    parts = {name.split('.')[0] for names in LAYOUTS[layout].values() for name in names if name}
    return [key for key in state if key.startswith(f'{root}.') and key[len(root) + 1:].split('.')[0] in parts]


def _block(state: State, root: str, layout: str) -> ForeignBlock:
    branches = {}
    for branch, names in LAYOUTS[layout].items():
        if f'{root}.{names.bn}.weight' in state:
            branches[branch] = ForeignBranch(
                _norm(state, f'{root}.{names.bn}'), _conv(state, root, names.conv, layout),
                _first(state, root, names, layout), _norm(state, f'{root}.{names.bn1}') if names.bn1 else {})
    return ForeignBlock(layout, branches)


def _norm(state: State, path: str) -> Dict[str, Tensor]:
    keys = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
    return {key: state[f'{path}.{key}'] for key in keys if f'{path}.{key}' in state}


def _conv(state: State, root: str, name: str, layout: str) -> Union[ForeignConv, ForeignBlock, None]:
    path = f'{root}.{name}'
    if name and f'{path}.{LAYOUTS[layout]["kxk"].bn}.weight' in state:
        return _block(state, path, layout)
    return ForeignConv(state[f'{path}.weight'], state.get(f'{path}.bias')) if f'{path}.weight' in state else None


def _first(state: State, root: str, names: Names, layout: str) -> Optional[ForeignConv]:
    key = f'{root}.{names.difference}.weight'
    if names.difference and key in state:
        weight = state[key]
        eye = identity(len(weight), len(weight) // weight.shape[1])
        return ForeignConv((weight.double() + eye.weight).to(weight.dtype))
    found = _conv(state, root, names.conv1, layout) if names.conv1 else None
    return found if isinstance(found, ForeignConv) else None


# ---------------------------------------------------------------------------- what such a block computes


def run(block: ForeignBlock, x: Tensor, geometry: Geometry) -> Tensor:
    """Output of a block in eval mode, as the other code computes it: what a converted block is compared with.

    The border of an inner pair is padded behind its norm, with what the norm makes of zero.

    Args:
        block (ForeignBlock): The block.
        x (Tensor): Map of shape (N, C_in, H, W).
        geometry (Geometry): Of the convolution that it stands for.

    Returns:
        Tensor: Map of shape (N, C_out, H', W').
    """
    outs = [_run_branch(name, branch, x, geometry) for name, branch in block.branches.items()]
    return torch.stack(outs).sum(0)


def _run_branch(name: str, branch: ForeignBranch, x: Tensor, geometry: Geometry) -> Tensor:
    (height, width), (rows, columns) = geometry.kernel_size, geometry.padding
    if branch.first is not None:
        x = F.conv2d(x, branch.first.weight.to(x), _to(branch.first.bias, x), groups=geometry.groups)
        zero = x.new_zeros(1, x.shape[1], 1, 1)
        if branch.first.bias is not None:
            zero = zero + branch.first.bias.to(x).view(1, -1, 1, 1)
        border = _run_norm(branch.first_norm, zero)
        x = F.pad(_run_norm(branch.first_norm, x) - border, (columns, columns, rows, rows)) + border
        rows = columns = 0
    if name == '1x1_avg':
        x = F.avg_pool2d(x, (height, width), geometry.stride, (rows, columns))
    elif isinstance(branch.last, ForeignBlock):
        inner = {**vars(geometry), 'padding': (rows, columns), 'in_channels': x.shape[1]}
        x = run(branch.last, x, Geometry(**inner))
    elif branch.last is not None:
        size = branch.last.weight.shape[2:]
        padding = tuple(p if k > 1 else 0 for p, k in zip((rows, columns), size))
        dilation = tuple(d if k > 1 else 1 for d, k in zip(geometry.dilation, size))
        x = F.conv2d(x, branch.last.weight.to(x), _to(branch.last.bias, x), geometry.stride, padding, dilation,
                     geometry.groups)
    return _run_norm(branch.norm, x)


def _run_norm(norm: Dict[str, Tensor], x: Tensor) -> Tensor:
    mean, var, weight, bias = (norm[key].to(x) for key in ('running_mean', 'running_var', 'weight', 'bias'))
    return F.batch_norm(x, mean, var, weight, bias, eps=EPS)


def _to(value: Optional[Tensor], like: Tensor) -> Optional[Tensor]:
    return None if value is None else value.to(like)
