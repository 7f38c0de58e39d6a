"""A block whose norms work with statistics of the batch runs as one sum that keeps little for backward."""
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import merged, merging, term_gradients, terms
from .autocast import autocast_dtype, without_autocast
from .averages import average
from .branches import Branch, bordered, normed
from .geometry import Geometry
from .maps import Moments
from .merged import Conv
from .statistics import running, seen_by
from .terms import Found, Norm, Part, Parts

if TYPE_CHECKING:
    from .block import Block

# positions from which on a layout is changed
_LARGE = 128

# ---------------------------------------------------------------------- may it?

def _why_norm(norm: nn.Module) -> str:
    if not isinstance(norm, _BatchNorm) or type(norm).forward is not _BatchNorm.forward:
        return f'{type(norm).__name__} is more than a batch norm'
    if not norm.training:
        return 'a norm in it works with fixed statistics'
    if norm.weight is None or norm.bias is None or norm.running_mean is None or norm.num_batches_tracked is None:
        return 'a norm in it is not affine or keeps no statistics'
    return merging.why_called(norm)


def _why_conv(conv: nn.Module) -> str:
    if hasattr(conv, 'branches'):
        return ''  # it is called
    if not isinstance(conv, nn.Conv2d) or not merging.is_plain_conv(type(conv)):
        return f'{type(conv).__name__} is more than a plain convolution'
    if conv._parameters.get('weight') is None or conv.bias is not None:
        return 'a convolution in it is not as a block makes it'
    return merging.why_called(conv)


def why_branchwise(block: 'Block') -> str:
    """Why a block in train mode has to run branch by branch; empty if it may run as one sum.

    It may if all norms are plain batch norms with statistics of the batch and nobody could notice that the modules in
    it are not called; nested blocks are called.
    """
    if block.gate is not None:
        return 'a search decides which of its branches run'
    if merging.hooks_for_all():
        return 'there are hooks for all modules'
    for key, branch in block.branches.items():
        why = merging.why_own(key, branch)
        for name, module in branch.named_children():
            why = why or (_why_norm if name.startswith('bn') else _why_conv)(module)
        if why:
            return why
    return ''


def _fits(block: 'Block', x: Tensor, low: Optional[torch.dtype]) -> bool:
    """Whether each norm sees several values, and all numbers are of one kind."""
    height, width = block.geometry.output_size(x.shape[2:])
    kind, tensors = torch.float32 if x.dtype == low else x.dtype, [*block.parameters(), block.scale]
    return (len(x) * height * width > 1 and x.numel() > x.shape[1] and kind in (torch.float32, torch.float64)
            and all(tensor.dtype == kind and tensor.device == x.device for tensor in tensors))


# ---------------------------------------------------------------------- its numbers

def _norm(norm: _BatchNorm) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps)


def _part(name: str, branch: Branch, x: Tensor) -> Part:
    conv: Any = getattr(branch, 'conv', None)
    has_first = hasattr(branch, 'conv1')
    if hasattr(conv, 'branches'):
        if has_first:
            x = normed(branch.bn1, bordered(branch.conv1, branch.geometry, x))
        return Part(name, None, None, conv(x), _norm(branch.bn))
    return Part(name, Conv(branch.conv1.weight, None) if has_first else None, _norm(branch.bn1) if has_first else None,
                None if conv is None else Conv(conv.weight, None), _norm(branch.bn))


def _track(norm: _BatchNorm, found: Moments) -> None:
    """Let running statistics take notice of a batch, as PyTorch's norm does."""
    (mean, var), number = running(norm), seen_by(norm)
    number.add_(1)
    share = 1 / float(number) if norm.momentum is None else norm.momentum
    mean.mul_(1 - share).add_(found.mean, alpha=share)
    var.mul_(1 - share).add_(found.var, alpha=share * found.count / (found.count - 1))


# ---------------------------------------------------------------------- the sum

def _plainly(parts: Parts, x: Tensor, low: Optional[torch.dtype]) -> Tensor:
    """What :func:`terms.forward` computes, in operations that autograd knows, for second derivatives."""
    def norm(y: Tensor, by: Norm) -> Tensor:
        return F.batch_norm(y, None, None, by.weight, by.bias, True, 0.0, by.eps)

    geometry, out = parts.geometry, x.new_zeros(())
    first = terms.first_shape(geometry)
    for part in parts.branches:
        y = x
        if part.conv1 is not None and part.bn1 is not None:
            y = norm(geometry.pad(first(x, part.conv1.weight, low)), part.bn1)
        if isinstance(part.conv, Tensor):
            y = part.conv
        elif part.name == '1x1_avg':
            y = average(y if part.conv1 else geometry.pad(y), geometry.unpadded)
        elif part.conv is not None:
            shape = terms.shape_of(part.name, geometry.unpadded if part.conv1 else geometry)
            y = shape(y, part.conv.weight, low)
        out = out + norm(y, part.bn)
    return out * parts.scale.view(1, -1, 1, 1)


def _outer_layout(x: Tensor) -> torch.memory_format:
    """How what comes out lies in memory, as that of a convolution."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _layout(x: Tensor, geometry: Geometry) -> torch.memory_format:
    """How maps lie in memory meanwhile.

    Measured on the CPU: convolutions of maps that lie with their channels last take less time, by up to a half, but
    for small maps of many channels, where it is the kernels that have to be reordered.
    """
    if _outer_layout(x) == torch.channels_last:
        return torch.channels_last
    worth = x.device.type == 'cpu' and x.dtype == torch.float32 and geometry.groups == 1 and x.shape[1] > 1
    return torch.channels_last if worth and x[0, 0].numel() >= _LARGE else torch.contiguous_format


def _laid(parts: Parts, layout: torch.memory_format) -> Parts:
    """Maps that stand for convolutions in this layout."""
    def laid(conv: Any) -> Any:
        return conv.contiguous(memory_format=layout) if isinstance(conv, Tensor) else conv
    return parts._replace(branches=tuple(part._replace(conv=laid(part.conv)) for part in parts.branches))


class _Summed(torch.autograd.Function):
    """The block as a function of its input and its numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: Parts, low: Optional[torch.dtype], track: Callable[[List[Found]], None],
                *tensors: Tensor) -> Tensor:
        parts, layout = merged.with_tensors(form, iter(tensors)), _layout(x, form.geometry)
        with without_autocast():
            out, found = terms.forward(_laid(parts, layout), x.contiguous(memory_format=layout), low)
            # before anything is kept: checkpointing stops a second pass there
            track(found)
        own = merged.tensors_of(tuple(found))
        ctx.form, ctx.low, ctx.found, ctx.number = form, low, merging.form_of(tuple(found)), len(tensors)
        ctx.save_for_backward(x, *tensors, *own)
        out = out.contiguous(memory_format=_outer_layout(x))
        # what follows may write into it, as a ReLU in place does where the norm behind is left out
        return out.clone() if out._is_view() else out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, *rest = ctx.saved_tensors
        tensors, own = rest[:ctx.number], rest[ctx.number:]
        parts, found = merged.with_tensors(ctx.form, iter(tensors)), merged.with_tensors(ctx.found, iter(own))
        needs_x, _, _, _, *needs = ctx.needs_input_grad
        with without_autocast():
            if torch.is_grad_enabled():
                # second derivatives are asked for: autograd shall know what was made of what
                with torch.enable_grad():
                    out = _plainly(parts, x, ctx.low)
                asked = [tensor for tensor, needed in zip((x, *tensors), (needs_x, *needs)) if needed]
                got = iter(torch.autograd.grad(out, asked, gradient, create_graph=True, allow_unused=True))
                by_x, *by_tensor = (next(got) if needed else None for needed in (needs_x, *needs))
                return (by_x, None, None, None, *by_tensor)
            layout = _layout(x, parts.geometry)
            dense, gradient = (one.contiguous(memory_format=layout) for one in (x, gradient))
            by_x, by_parts = term_gradients.backward(_laid(parts, layout), dense, ctx.low, found, gradient, needs_x,
                                                     merged.with_tensors(ctx.form, iter(needs)))
        by_tensor = merged.at_places(parts, by_parts)
        if by_x is not None:
            by_x = by_x.contiguous(memory_format=_outer_layout(x))
        return (by_x, None, None, None, *(one if needed else None for one, needed in zip(by_tensor, needs)))


def run(block: 'Block', x: Tensor) -> Optional[Tensor]:
    """Output of a block in train mode as one sum, differentiable; None if it has to run branch by branch.

    Running statistics take notice of the batch.

    Args:
        block (Block): Any.
        x (Tensor): Map of shape (N, C_in, H, W).

    Returns:
        Tensor: Map of shape (N, C_out, H', W'), or None.
    """
    if not isinstance(x, Tensor) or x.dim() != 4 or not block.training or merging.compiling():
        return None
    low = None if x.dtype == torch.float64 else autocast_dtype(x.device)
    if why_branchwise(block) or not _fits(block, x, low) or merging.recorded(x, [*block.parameters()]):
        return None
    parts = Parts(block.geometry, block.scale, tuple(_part(name, branch, x) for name, branch in
                                                     block.branches.items()))

    def track(found: List[Found]) -> None:
        for part, branch, own in zip(parts.branches, block.branches.values(), found):
            if own.inner is not None:
                _track(branch.bn1, own.inner)
            _track(branch.bn, terms.seen(part, own, block.geometry))

    out: Tensor = _Summed.apply(  # type: ignore[no-untyped-call]
        x, merging.form_of(parts), low, track, *merged.tensors_of(parts))
    return out
