"""Branches taken out of a network with what they compute, as a search leaves them out: nothing absorbs them."""
from typing import Sequence, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import left_out
from .block import Block
from .handing import exchange_hooks
from .statistics import running, seen_by
from .surgery import Behind, _replace, fold, norm_behind


def drop(model: nn.Module, name: str, branches: Sequence[str], behind: Behind) -> None:
    """Take branches out of a block; the others go on as they are, parameters and statistics included.

    The function changes by what the branches compute: where they did not run, by nothing. Without a branch left beside
    the original, the op is plain again, by one of two ways. Where the norm behind the block is left out
    (`left_out`), the original's norm takes its place, and the function stays what it was in train mode, too.
    Otherwise the original and its norm are fused into the convolution as at the end of a training, by the running
    statistics: the function stays in eval mode, in train mode as far as the norm behind takes scale and shift out.

    Args:
        model (nn.Module): Changed in place.
        name (str): A block.
        branches (Sequence[str]): Branches of it, not ``kxk``; none: the op is made plain if there is no other.
        behind (Mapping): Batch norms behind the ops of the plain network.
    """
    block = cast(Block, model.get_submodule(name))
    for branch in branches:
        del block.branches[branch]
    block.gate = None
    if block.added:
        return
    follower = norm_behind(model, name, behind)
    if follower is not None and left_out.is_left_out(follower):
        _hand_over(block, follower)
        exchange_hooks(block, block.origin.conv)
        _replace(model, name, block.origin.conv)
        left_out.apply_again(follower, follower.weight.requires_grad)
    else:
        fold(model, name, behind)


@torch.no_grad()
def _hand_over(block: Block, follower: _BatchNorm) -> None:
    """Let the norm behind a block do what the original's norm and the block's scale do; its convolution is bare."""
    bn, conv, scale = block.origin.bn, block.origin.conv, block.scale.double()
    for parameter in (bn.weight, bn.bias):
        parameter.copy_(parameter.double() * scale)
    # the very parameters: an optimizer keeps their state
    follower.weight, follower.bias = bn.weight, bn.bias
    mean, var = running(bn)
    theirs = running(follower)
    theirs.mean.copy_(mean)
    theirs.var.copy_(var.double() + bn.eps - follower.eps)
    seen_by(follower).copy_(seen_by(bn))
    if block.has_bias:
        conv.bias = nn.Parameter(torch.zeros_like(bn.bias), requires_grad=block.trains_bias)
