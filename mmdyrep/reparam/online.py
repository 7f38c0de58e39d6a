"""Blocks whose norms keep fixed statistics in training: where these come from the first time."""
from typing import TYPE_CHECKING, Dict, List, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .autocast import without_autocast
from .statistics import Statistics, restate, running

if TYPE_CHECKING:
    from .block import Block


def norms_in(module: nn.Module) -> List[_BatchNorm]:
    """All batch norms of a module."""
    return [child for child in module.modules() if isinstance(child, _BatchNorm)]


def missing(module: nn.Module) -> bool:
    """Whether a batch norm in it has no statistics yet: mean 0, as norms are made, of inputs that vary."""
    return any(not own.mean.any() and bool((own.var > 0).all()) for own in map(running, norms_in(module)))


@torch.no_grad()
def settle(block: 'Block', x: Tensor) -> None:
    """Let the norms of a block take their statistics from a batch if one has none; what it computes stays.

    With several processes they are the mean over all of them.

    Args:
        block (Block): Its norms work in eval mode.
        x (Tensor): Its input, shape (N, C_in, H, W).
    """
    block.settled = True
    if not missing(block):
        return
    norms = norms_in(block)
    found: Dict[nn.Module, Tensor] = {}

    def look(norm: nn.Module, inputs: Tuple[Tensor, ...]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)
        var, mean = torch.var_mean(values, dim=1, unbiased=values.shape[1] > 1)
        found[norm] = torch.cat([mean, var])

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        with without_autocast():
            block.branchwise(x.detach().to(block.scale.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    table = torch.cat([found[norm] for norm in norms])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(table)
        table /= dist.get_world_size()
    for norm, values in zip(norms, table.split([2 * norm.num_features for norm in norms])):
        restate(norm, Statistics(*values.chunk(2)))


def keep_compilers_out() -> None:
    """Let torch.compile leave :func:`settle` alone: looking at numbers is nothing that could be compiled."""
    global settle
    if not getattr(settle, '_torchdynamo_disable', False):
        import torch._dynamo  # takes its time, and most have no need of it
        settle = torch._dynamo.disable(settle)
