"""Blocks put into a network, taken out of it and changed by name, its function kept."""
import copy
from functools import partial
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Set, TypeVar, Union, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import structure as structures
from .block import Block
from .branches import MakeNorm
from .geometry import Geometry
from .handing import why_not_now
from .initializing import Start
from .statistics import Measure, Statistics, running

# name of the batch norm behind each op of the plain network, None where the op has a bias instead
Behind = Mapping[str, Optional[str]]
Model = TypeVar('Model', bound=nn.Module)


def norm_like(norm: Optional[_BatchNorm]) -> MakeNorm:
    """Maker of norms with eps and momentum of ``norm``: nn.SyncBatchNorm if it is one, else nn.BatchNorm2d.

    Never of its own class, whose forward may do more (an activation, a gamma that is stored as an offset).
    """
    if norm is None:
        return nn.BatchNorm2d
    kind = nn.SyncBatchNorm if isinstance(norm, nn.SyncBatchNorm) else nn.BatchNorm2d
    return partial(kind, eps=norm.eps, momentum=norm.momentum)


def _norm_within(norm: _BatchNorm) -> MakeNorm:
    """As :func:`norm_like`, for norms in a block whose own norm is ``norm``: gamma and beta frozen if its are."""
    return partial(_made, norm_like(norm), norm.weight.requires_grad)


def _made(make_norm: MakeNorm, trainable: bool, channels: int) -> _BatchNorm:
    return make_norm(channels).requires_grad_(trainable)


def norm_behind(model: nn.Module, name: str, behind: Behind) -> Optional[_BatchNorm]:
    """Batch norm that reads the output of an op, nested or not; None if there is none.

    Raises:
        RuntimeError: If there was one and it is gone.
    """
    branch = structures.parent_of(name, behind)
    bn = f'{branch}.bn' if branch else behind[name]
    norm = model.get_submodule(bn) if bn else None
    if norm is not None and (not isinstance(norm, _BatchNorm) or norm.running_mean is None):
        lost = 'keeps no running statistics any more' if isinstance(norm, _BatchNorm) else (
            f'has become {type(norm).__name__}')
        raise RuntimeError(f'{bn}, the batch norm behind {name}, {lost} since the network was looked at, by a tool '
                           'that fuses norms into convolutions, say. Fuse the blocks (switch_to_deploy) before norms '
                           'are changed; this network has to be built anew')
    return norm


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)


def geometry_of(op: nn.Module) -> Geometry:
    """Geometry of a convolution or a block."""
    return op.geometry if isinstance(op, Block) else Geometry.of(cast(nn.Conv2d, op))


def expand(model: nn.Module, name: str, branches: Sequence[str], behind: Behind, *, gamma: float,
           make_norm: Optional[Callable[[Optional[_BatchNorm]], MakeNorm]] = None,
           generator: Optional[torch.Generator] = None, measure: Optional[Measure] = None,
           rescale: bool = True, start: Optional[Start] = None) -> List[str]:
    """Add branches to an op, output-preserving in eval mode (Rep, Section 4.1).

    Args:
        model (nn.Module): Changed in place.
        name (str): A convolution or a block.
        branches (Sequence[str]): Those already there are left alone.
        behind (Mapping): Batch norms behind the ops of the plain network.
        gamma (float): First scale of the new branches' last batch norms.
        make_norm (callable, optional): Takes the norm behind the op, returns a maker of batch norms. Norms in a
            block are made like those that are there, which may have been converted since (SyncBN).
        generator (torch.Generator, optional): Source of the new weights.
        measure (callable, optional): Statistics on training batches; running statistics without it.
        rescale (bool): False keeps the scale of a new block at 1, as DBB has it.
        start (Drawn or Split, optional): What new branches start from. Defaults to draws of PyTorch's kind.

    Returns:
        list[str]: The branches that were added.

    Raises:
        ValueError: If something has been done to the convolution that a block can't take over.
    """
    op = cast(Union[nn.Conv2d, Block], model.get_submodule(name))
    new = [branch for branch in branches if branch != 'kxk' and not (isinstance(op, Block) and branch in op.branches)]
    if not new:
        return []
    follower = norm_behind(model, name, behind)
    is_new = not isinstance(op, Block)
    if not isinstance(op, Block):
        reason = why_not_now(model, name)
        if reason:
            raise ValueError(f'{name} can not be expanded: {reason}')
        statistics = None
        if follower is not None:
            mean, var = running(follower)
            statistics = Statistics(mean - (0 if op.bias is None else op.bias.detach()), var)
        if follower is not None and structures.depth_of(name, behind):
            maker = _norm_within(follower)
        else:
            maker = (make_norm or norm_like)(follower)
        op = Block(op, maker, statistics, rescale)
        _replace(model, name, op)
        if follower is not None:
            op.begin(follower)
    else:
        op.require_whole()
        op.make_norm = _norm_within(op.origin.bn)
    with torch.no_grad():
        op.expand(new, gamma, generator, measure, rescale and is_new, start)
    return new


def remove(model: nn.Module, name: str, branches: Sequence[str], behind: Behind,
           measure: Optional[Measure] = None) -> None:
    """Absorb branches into the original (Dep, Section 4.2); without a branch left the op is plain again.

    Args:
        model (nn.Module): Changed in place.
        name (str): A block.
        branches (Sequence[str]): Branches of it, not ``kxk``.
        behind (Mapping): Batch norms behind the ops of the plain network.
        measure (callable, optional): Statistics on training batches, for the original's norms.
    """
    block = cast(Block, model.get_submodule(name))
    if set(branches) >= set(block.added):
        fold(model, name, behind)
    else:
        with torch.no_grad():
            block.remove(branches, measure)


def _check_hooks(model: nn.Module, name: str) -> None:
    block = cast(Block, model.get_submodule(name))
    if block.altered and block._forward_hooks and not block.has_bias:
        raise structures.StructureError(
            f'{name} can not be fused: a forward hook on it changes its output, so that the norm behind it can not '
            'take up its bias. Remove the hook, or let it only read')


def fold(model: nn.Module, name: str, behind: Behind) -> None:
    """Replace a block, with all that is nested in it, by the convolution that it is equivalent to.

    Raises:
        StructureError: If a hook between the block and the norm behind keeps that from taking up the bias.
    """
    _check_hooks(model, name)
    block = cast(Block, model.get_submodule(name))
    follower = norm_behind(model, name, behind)
    kernel = block.fold()
    _replace(model, name, block.original_conv())
    if not block.has_bias:
        with torch.no_grad():
            # (x + b) - mean == x - (mean - b)
            mean = running(cast(_BatchNorm, follower)).mean
            mean.copy_(mean.double() - kernel.bias)


def to_structure(model: nn.Module, target: structures.Ops, behind: Behind, *, gamma: float, rescale: bool = True,
                 make_norm: Optional[Callable[[Optional[_BatchNorm]], MakeNorm]] = None,
                 start: Optional[Start] = None) -> None:
    """Expand and remove until the network has the ops and branches of ``target``, which has been checked."""
    for name in reversed(list(structures.blocks_of(model))):
        block = cast(Block, model.get_submodule(name))
        extra = [branch for branch in block.added if branch not in target.get(name, ())]
        if extra:
            remove(model, name, extra, behind)
    for name, branches in target.items():
        expand(model, name, branches, behind, gamma=gamma, make_norm=make_norm, rescale=rescale, start=start)


def outer_blocks(model: nn.Module) -> Dict[str, Block]:
    """Blocks by name that lie in no other."""
    found: Dict[str, Block] = {}
    inner: Set[nn.Module] = set()
    for name, block in structures.blocks_of(model).items():
        if block not in inner:
            found[name] = block
            inner.update(block.modules())
    return found


def fold_all(model: nn.Module, behind: Behind) -> None:
    """Fuse every block of the network into the plain convolution, in place."""
    for name in outer_blocks(model):
        _check_hooks(model, name)  # before anything is changed
    for name in reversed(list(outer_blocks(model))):
        fold(model, name, behind)


def fused_copy(model: Model, behind: Behind) -> Model:
    """Copy of the network with every block fused; the network itself is left as it is."""
    plain = copy.deepcopy(model)
    for source, copied in zip(model.modules(), plain.modules()):
        wrapped = getattr(vars(copied).get('forward'), '__wrapped__', None)
        if getattr(wrapped, '__self__', None) is source:
            # a copy of a wrapped forward (mmengine's activation_checkpointing) still runs the source
            del copied.forward
    fold_all(plain, behind)
    return plain


def originals(model: nn.Module) -> Dict[str, nn.Conv2d]:
    """Convolution that each block of the plain network has grown from, by the name of its op."""
    return {name: block.original_conv() for name, block in outer_blocks(model).items()}
