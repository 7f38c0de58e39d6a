"""Branches of a block that do not run for the moment, as a search of the structure samples them (RepNAS).

The forward is that of the branches that run, nothing is multiplied: a gate of value 1 is no operation. Its gradient
follows from those of the last batch norm of its branch, see :func:`slope`.
"""
from typing import TYPE_CHECKING, Dict, FrozenSet, List, Mapping, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from .block import Block
    from .branches import Branch


class Gate(NamedTuple):
    """Branches of one block that do not run; never the original."""

    training: FrozenSet[str] = frozenset()
    evaluation: FrozenSet[str] = frozenset()


def running(block: 'Block', training: bool = False) -> List['Branch']:
    """Branches of a block that run, the original first: all if it has no gate."""
    if block.gate is None:
        return list(block.branches.values())
    closed = block.gate.training if training else block.gate.evaluation
    return [branch for name, branch in block.branches.items() if name not in closed]


def set_gates(blocks: Mapping[str, 'Block'], gates: Dict[str, Gate]) -> None:
    """Let the blocks of these names have gates, and no others.

    Args:
        blocks (dict): All blocks of a network by name.
        gates (dict): By name of the block; empty: all branches of all blocks run again.
    """
    for name, block in blocks.items():
        block.gate = gates.get(name)


def slope(bn: _BatchNorm) -> Optional[Tensor]:
    """Derivative of the loss by a factor w on the output of a branch, at w = 1; a tensor without dimensions.

    The branch's output is gamma * z + beta, so dL/dw = sum over channels of gamma * dL/dgamma + beta * dL/dbeta: the
    gradients that backward has left tell it, averaged over ranks, unscaled and clipped as they are.

    Args:
        bn (_BatchNorm): The last of the branch.

    Returns:
        Tensor: Float64; None if the branch has no gradients: it has not run, or is frozen.
    """
    found = [(parameter, parameter.grad) for parameter in (bn.weight, bn.bias) if parameter.grad is not None]
    if not found:
        return None
    with torch.no_grad():
        return torch.stack([(parameter.double() * gradient.double()).sum() for parameter, gradient in found]).sum()
