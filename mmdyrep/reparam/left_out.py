"""The batch norm behind a block left out, as DBB and RepVGG have it.

The block takes over what the norm did, and the norm's values become those of the identity. So the function in eval mode
is the same with and without it, a state dict means the same to whoever loads it, and fusing works as ever: the fused
convolution's bias goes into the norm, which is applied again.
"""
from typing import Dict, Mapping, Optional, Sequence, Tuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .block import Block
from .branches import BRANCHES
from .structure import StructureError
from .surgery import outer_blocks

_PLAIN = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def _passing(input: Tensor) -> Tensor:
    """In the place of the norm's forward, of the object alone; copies and pickles with it."""
    return input


def is_left_out(norm: nn.Module) -> bool:
    """Whether the norm hands its input on."""
    return vars(norm).get('forward') is _passing


def taken_over(state: Mapping[str, Tensor], op: str, norm: str, eps: float) -> Dict[str, Tensor]:
    """Entries of a state dict, changed: the block does what the norm behind it did, the norm is the identity.

    Args:
        state (Mapping[str, Tensor]): Holds the block and the norm.
        op (str): Prefix of the block's keys.
        norm (str): Prefix of the norm's.
        eps (float): Of the norm.

    Returns:
        dict: New tensors, nothing if the norm is the identity already or is not there.
    """
    if f'{norm}.running_var' not in state or f'{op}.branches.kxk.bn.weight' not in state:
        return {}
    mean, var = (state[f'{norm}.{key}'] for key in ('running_mean', 'running_var'))
    weight = state.get(f'{norm}.weight', torch.ones_like(mean))
    bias = state.get(f'{norm}.bias', torch.zeros_like(mean))
    identity = {'weight': torch.ones_like(weight), 'bias': torch.zeros_like(bias),
                'running_mean': torch.zeros_like(mean), 'running_var': torch.full_like(var, 1 - eps)}
    now = {'weight': weight, 'bias': bias, 'running_mean': mean, 'running_var': var}
    if all(torch.equal(now[key], identity[key]) for key in now):
        return {}
    gain = weight.double() / (var.double() + eps).sqrt()
    new = {f'{norm}.{key}': value for key, value in identity.items() if f'{norm}.{key}' in state}
    for branch in BRANCHES:
        for key in ('weight', 'bias'):
            name = f'{op}.branches.{branch}.bn.{key}'
            if name in state:
                new[name] = state[name].double() * gain
    shift = (bias.double() - mean.double() * gain) / state[f'{op}.scale'].double()
    new[f'{op}.branches.kxk.bn.bias'] = new[f'{op}.branches.kxk.bn.bias'] + shift
    return {key: value.to(state[key].dtype) for key, value in new.items()}


@torch.no_grad()
def leave_out(block: Block, norm: _BatchNorm) -> None:
    """Let a block take over what the norm behind it does, which is not applied from now on; eval function kept.

    Gamma and beta of the norm get no gradient: parallel wrappers don't wait for any.
    """
    state = {**block.state_dict(prefix='op.'), **norm.state_dict(prefix='norm.')}
    for key, value in taken_over(state, 'op', 'norm', norm.eps).items():
        state[key].copy_(value)
    norm.forward = _passing  # type: ignore[method-assign]
    norm.requires_grad_(False)


def apply_again(norm: nn.Module, trainable: bool) -> None:
    """Let a norm that was left out work again, with its gamma and beta."""
    del norm.forward
    norm.requires_grad_(trainable)


def settle(model: nn.Module, behind: Mapping[str, Optional[str]]) -> Tuple[str, ...]:
    """Leave out the norm behind every block of a network, and apply those behind its plain convolutions.

    Args:
        model (nn.Module): Changed in place.
        behind (Mapping): Batch norms behind the ops of the plain network.

    Returns:
        tuple[str]: Names of the norms that are left out now.

    Raises:
        StructureError: If a norm is more than a batch norm (an activation inside), before anything is changed.
    """
    blocks = outer_blocks(model)
    norms = {name: model.get_submodule(norm) for name, norm in behind.items() if norm}
    for name in blocks:
        # a tool may have fused it; what then can be done is no matter of this
        if name in norms and isinstance(norms[name], _BatchNorm) and type(norms[name]).forward not in _PLAIN:
            raise StructureError(f'{name}: {behind[name]}, the norm behind, is a {type(norms[name]).__name__}, which '
                                 'may be more than a batch norm and can not be left out; exclude the op or keep_norm')
    for name, norm in norms.items():
        if name in blocks and isinstance(norm, _BatchNorm):
            leave_out(blocks[name], norm)
        elif is_left_out(norm):
            apply_again(norm, cast(nn.Conv2d, model.get_submodule(name)).weight.requires_grad)
    return tuple(norm for norm in behind.values() if norm and is_left_out(model.get_submodule(norm)))


def all_left_out(model: nn.Module, norms: Sequence[str]) -> bool:
    """Whether the norms of these names are still left out; they may have been converted since (SyncBN)."""
    return all(is_left_out(model.get_submodule(norm)) for norm in norms)
