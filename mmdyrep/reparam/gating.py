"""Branches of a block that do not run for the moment, as a search of the structure samples them (RepNAS).

The forward is that of the branches that run, nothing is multiplied: a gate of value 1 is no operation. Its gradient
follows from those of the last batch norm of its branch, see :func:`slope`.
"""
from typing import Dict, FrozenSet, List, NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Gate(NamedTuple):
    """Branches of one block that do not run; never the original."""

    training: FrozenSet[str] = frozenset()
    evaluation: FrozenSet[str] = frozenset()


def running(block: nn.Module, training: bool = False) -> List[nn.Module]:
    """Branches of a gated block that run, the original first."""
    closed = block.gate.training if training else block.gate.evaluation
    return [branch for name, branch in block.branches.items() if name not in closed]


def set_gates(blocks: Dict[str, nn.Module], gates: Dict[str, Gate]) -> None:
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
    found = [parameter for parameter in (bn.weight, bn.bias) if parameter.grad is not None]
    if not found:
        return None
    with torch.no_grad():
        return sum((parameter.double() * parameter.grad.double()).sum() for parameter in found)
