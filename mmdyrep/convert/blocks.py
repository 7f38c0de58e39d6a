"""A block of another code as the keys and values of ours."""
from typing import Dict, List, Tuple

import torch
from torch import Tensor

from mmdyrep.reparam import BRANCHES, Geometry
from mmdyrep.reparam.kernels import Kernel, chain_1x1

from .layouts import EPS, ForeignBlock, ForeignBranch, ForeignConv


def to_state(block: ForeignBlock, path: str, geometry: Geometry) -> Tuple[Dict[str, Tensor], List[Kernel]]:
    """Keys and values of a block that computes the same.

    A convolution's bias goes into the mean of the norm behind it, the scale is 1. A 1x1_kxk branch with another inner
    width than the input's (DBB's, of depthwise convolutions) has no place in our block.

    Args:
        block (ForeignBlock): The block.
        path (str): Name of the op.
        geometry (Geometry): Of the op.

    Returns:
        tuple[dict, list[Kernel]]: The state; branches without a place, to be absorbed by the block that loads it.

    Raises:
        ValueError: If the block has a branch that the op can't have.
    """
    weight = block.branches['kxk'].norm['weight']
    state = {f'{path}.scale': torch.ones_like(weight)}
    absorbed = []
    for name, branch in block.branches.items():
        if branch.first is not None and name == '1x1_kxk' and len(branch.first.weight) != geometry.in_channels:
            absorbed.append(_merged(branch, geometry))
            continue
        misfit = BRANCHES[name].misfit(geometry)
        if misfit:
            raise ValueError(f'{path}: branch {name} {misfit}; is the checkpoint of another network?')
        here = f'{path}.branches.{name}'
        if branch.first is not None:
            state[f'{here}.conv1.weight'] = branch.first.weight
            state.update(_norm(f'{here}.bn1', branch.first_norm, branch.first))
        if isinstance(branch.last, ForeignBlock):
            inner = geometry if name == 'kxk' else Geometry(**{**vars(geometry), 'padding': (0, 0)})
            nested, without = to_state(branch.last, f'{here}.conv', inner)
            if without:
                raise ValueError(f'{here}: this nested block can not be converted, its inner width is another one')
            state.update(nested)
        elif branch.last is not None:
            state[f'{here}.conv.weight'] = branch.last.weight
        state.update(_norm(f'{here}.bn', branch.norm, branch.last))
    return state, absorbed


def _norm(path: str, norm: Dict[str, Tensor], conv: object) -> Dict[str, Tensor]:
    values = dict(norm)
    if isinstance(conv, ForeignConv) and conv.bias is not None:
        values['running_mean'] = without_bias(values['running_mean'], conv.bias)
    return {f'{path}.{key}': value for key, value in values.items()}


def without_bias(mean: Tensor, bias: Tensor) -> Tensor:
    """Mean of a norm that reads a convolution without the bias that it had."""
    return (mean.double() - bias.double()).to(mean.dtype)


def _merged(branch: ForeignBranch, geometry: Geometry) -> Kernel:
    assert branch.first is not None and isinstance(branch.last, ForeignConv)
    first = _fused(Kernel(branch.first.weight.double(), torch.zeros(len(branch.first.weight)).double()),
                   branch.first_norm)
    second = branch.last.weight.double()
    return _fused(chain_1x1(first, Kernel(second, second.new_zeros(len(second))), geometry.groups), branch.norm)


def _fused(kernel: Kernel, norm: Dict[str, Tensor]) -> Kernel:
    gain = norm['weight'].double() / (norm['running_var'].double() + EPS).sqrt()
    bias = (kernel.bias - norm['running_mean'].double()) * gain + norm['bias'].double()
    return Kernel(kernel.weight * gain.view(-1, 1, 1, 1), bias)


def identity_norm(norm: object, channels: Tensor) -> Dict[str, Tensor]:
    """Values with which a batch norm hands its input on, for code that has none behind its blocks.

    Args:
        norm (_BatchNorm): Whose eps counts.
        channels (Tensor): Anything of shape (C,), of the wanted dtype.
    """
    one = torch.ones_like(channels)
    return {'weight': one, 'bias': torch.zeros_like(one), 'running_mean': torch.zeros_like(one),
            'running_var': one - getattr(norm, 'eps', EPS), 'num_batches_tracked': torch.tensor(0)}
