"""The equivalent kernel of a block in the precision of its parameters, and its gradients.

The same equivalences as in :mod:`kernels`, arranged for speed: branches are added in place into one kernel, what
is smaller than that stays small, and the gradients need no intermediate kernel of the forward computation.
"""
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from .geometry import Geometry
from .kernels import Kernel


class Conv(NamedTuple):
    """Numbers of a convolution."""

    weight: Tensor
    bias: Optional[Tensor]


class Norm(NamedTuple):
    """Numbers of a batch norm that works with running statistics."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float


class Part(NamedTuple):
    """Numbers of a branch; what the branch does not have is None (a norm that has been fused, too)."""

    name: str
    conv1: Optional[Conv]
    bn1: Optional[Norm]
    conv: Union[Conv, 'Parts', None]
    bn: Optional[Norm]


class Parts(NamedTuple):
    """Numbers of a block: ``scale`` (C_out,), and its branches, the original first."""

    geometry: Geometry
    scale: Tensor
    branches: Tuple[Part, ...]


# as Part, Parts and so on with gradients in the places of parameters and None in those of buffers
Gradients = Tuple[Any, ...]


# ---------------------------------------------------------------------- trees of tensors

def tensors_of(tree: Any) -> List[Tensor]:
    """All tensors of a tree, in a fixed order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [tensor for item in tree for tensor in tensors_of(item)] if isinstance(tree, tuple) else []


def with_tensors(tree: Any, tensors: Iterator[Any]) -> Any:
    """The tree with other things in the places of its tensors."""
    if isinstance(tree, (Tensor, Place)):
        return next(tensors)
    if not isinstance(tree, tuple):
        return tree
    items = [with_tensors(item, tensors) for item in tree]
    return type(tree)(*items) if hasattr(tree, '_fields') else tuple(items)


def at_places(tree: Any, other: Any) -> List[Any]:
    """What stands in another tree at the places where ``tree`` has tensors; None where that has nothing."""
    if isinstance(tree, Tensor):
        return [other]
    if not isinstance(tree, tuple):
        return []
    return [found for i, item in enumerate(tree)
            for found in at_places(item, None if other is None else other[i])]


class Place:
    """Stands for a tensor in the form of a tree."""


# ---------------------------------------------------------------------- the kernel

def _column(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def _deviation(norm: Norm) -> Tensor:
    return (norm.var + norm.eps).sqrt()


def _factor(norm: Optional[Norm], scale: Optional[Tensor], like: Tensor) -> Tensor:
    """What a norm, and the scale of its block, multiply each channel by."""
    factor = like.new_ones(len(like)) if norm is None else norm.weight / _deviation(norm)
    return factor if scale is None else factor * scale


def _offset(norm: Optional[Norm], scale: Optional[Tensor], factor: Tensor, bias: Optional[Tensor]) -> Tensor:
    """What a norm behind a convolution of this bias adds to each channel."""
    if norm is None:
        return torch.zeros_like(factor) if bias is None else bias * factor
    own = norm.bias if scale is None else norm.bias * scale
    return own + ((-norm.mean if bias is None else bias - norm.mean) * factor)


def _taps(kernel: Tensor) -> Tensor:
    """Sum over the taps of a kernel, shape (C_out, C_in / groups)."""
    flat = kernel.reshape(kernel.shape[0] * kernel.shape[1], -1)
    # faster than `sum` over so few
    return (flat @ flat.new_ones(flat.shape[1])).view(kernel.shape[:2])


def _chain(outer: Tensor, inner: Tensor, groups: int) -> Tensor:
    """Kernel of a 1x1 convolution and the KxK convolution behind it."""
    if groups == 1:
        # outer as images: its input channels are what the 1x1 convolution puts out
        return F.conv2d(outer, inner.transpose(0, 1))
    out_channels, _, height, width = outer.shape
    weight = torch.einsum('gomhw,gmi->goihw', outer.reshape(groups, out_channels // groups, -1, height, width),
                          inner.reshape(groups, -1, inner.shape[1]))
    return weight.reshape(out_channels, -1, height, width)


def _first(conv: Conv, norm: Optional[Norm]) -> Kernel:
    """1x1 convolution and norm at the begin of a branch."""
    factor = _factor(norm, None, conv.weight)
    return Kernel(conv.weight * _column(factor), _offset(norm, None, factor, conv.bias))


def _op(conv: Union[Conv, Parts]) -> Union[Conv, Kernel]:
    return kernel(conv) if isinstance(conv, Parts) else conv


def _through(outer: Tensor, first: Kernel, groups: int) -> Tensor:
    """What the bias in front of a KxK convolution adds to each of its output channels."""
    grouped = _taps(outer).view(groups, -1, outer.shape[1])
    return (grouped @ first.bias.view(groups, -1, 1)).view(-1)


def _own_kernel(part: Part, parts: Parts) -> Tuple[Tensor, Optional[Tensor]]:
    """Kernel and bias of a branch in front of its last norm, the weight in the smallest form that says it all."""
    geometry, first = parts.geometry, None if part.conv1 is None else _first(part.conv1, part.bn1)
    if part.conv is None:  # an average
        height, width = geometry.kernel_size
        if first is None:
            return parts.scale.new_full((geometry.out_channels, 1, 1, 1), 1 / (height * width)), None
        return first.weight / (height * width), first.bias
    outer = _op(part.conv)
    if first is None:
        return outer
    bias = _through(outer.weight, first, geometry.groups)
    return (_chain(outer.weight, first.weight, geometry.groups),
            bias if outer.bias is None else outer.bias + bias)


def _centre(weight: Tensor, part: Part) -> Tensor:
    """The taps of a block's kernel that a branch has, as a view."""
    height, width = weight.shape[2:]
    if part.name in ('1x1', '1xk'):
        weight = weight[:, :, height // 2:height // 2 + 1]
    if part.name in ('1x1', 'kx1'):
        weight = weight[:, :, :, width // 2:width // 2 + 1]
    return weight


def _diagonal(weight: Tensor) -> Tuple[Tensor, ...]:
    """Index of the taps of a block's kernel that copy the input."""
    channels = torch.arange(weight.shape[0], device=weight.device)
    middle = [torch.full_like(channels, size // 2) for size in weight.shape[2:]]
    return (channels, channels % weight.shape[1], *middle)


def kernel(parts: Parts) -> Kernel:
    """Convolution that a block is equivalent to in eval mode (Eq. 2), differentiable by all its tensors.

    Args:
        parts (Parts): Numbers of the block, of one floating-point type.

    Returns:
        Kernel: Weight (C_out, C_in / groups, K_h, K_w) and bias (C_out,) of that type.
    """
    original = parts.branches[0]
    own, own_bias = _own_kernel(original, parts)
    factor = _factor(original.bn, parts.scale, parts.scale)
    weight, bias = own * _column(factor), _offset(original.bn, parts.scale, factor, own_bias)
    for part in parts.branches[1:]:
        factor = _factor(part.bn, parts.scale, parts.scale)
        if part.name == 'residual':
            # not in place: the gradient of indexing in place keeps a copy of the kernel
            weight = weight.index_put(_diagonal(weight), factor, accumulate=True)
            own_bias = None
        else:
            own, own_bias = _own_kernel(part, parts)
            if part.name == '1x1_avg':
                weight += own * _column(factor)
            else:
                _centre(weight, part).addcmul_(own, _column(factor))
        bias = bias + _offset(part.bn, parts.scale, factor, own_bias)
    return Kernel(weight, bias)


# ---------------------------------------------------------------------- its gradients

def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product of each output channel's kernels, shape (C_out,)."""
    return (a * b).flatten(1).sum(1)


def _norm_gradient(norm: Optional[Norm], scale: Optional[Tensor], factor: Tensor, bias: Tensor) -> Optional[Gradients]:
    """Gradients of a norm's weight and bias from those of its factor and of the bias that comes out."""
    if norm is None:
        return None
    weight = factor / _deviation(norm)
    return (*((weight, bias) if scale is None else (weight * scale, bias * scale)), None, None, norm.eps)


def _shifted(norm: Optional[Norm], bias: Optional[Tensor]) -> Union[Tensor, float]:
    """Bias of a convolution less the mean that the norm behind subtracts."""
    if norm is None:
        return 0.0 if bias is None else bias
    return -norm.mean if bias is None else bias - norm.mean


def _first_gradient(conv: Conv, norm: Optional[Norm], gradient: Kernel) -> Gradients:
    factor = _factor(norm, None, conv.weight)
    along = _dot(gradient.weight, conv.weight) + gradient.bias * _shifted(norm, conv.bias)
    return ((gradient.weight * _column(factor), gradient.bias * factor),
            _norm_gradient(norm, None, along, gradient.bias))


def _chain_gradient(outer: Tensor, first: Kernel, gradient: Kernel, factor: Tensor, groups: int
                    ) -> Tuple[Tensor, Kernel]:
    """Gradients of the KxK convolution before ``factor`` is applied, and of the 1x1 convolution before it."""
    scaled = outer * _column(factor)
    size = outer.shape[1]
    bias = (gradient.bias.view(groups, -1, 1) * first.bias.view(groups, 1, size)).view(-1, size, 1, 1)
    inner_bias = (gradient.bias.view(groups, 1, -1) @ _taps(scaled).view(groups, -1, size)).view(-1)
    if groups == 1:
        back = F.conv2d(gradient.weight, first.weight)
        inner = conv2d_weight(scaled, (gradient.weight.shape[1], size, 1, 1), gradient.weight)
        return back.add_(bias), Kernel(inner.transpose(0, 1), inner_bias)
    shape = groups, len(outer) // groups, -1, *outer.shape[2:]
    grouped, pointwise = gradient.weight.reshape(shape), first.weight.view(groups, size, -1)
    back = torch.einsum('goihw,gmi->gomhw', grouped, pointwise).reshape(outer.shape)
    inner = torch.einsum('goihw,gomhw->gmi', grouped, scaled.view(shape))
    return back.add_(bias), Kernel(inner.reshape(first.weight.shape), inner_bias)


def _part_gradient(part: Part, geometry: Geometry, scale: Optional[Tensor], gradient: Kernel) -> Gradients:
    factor = _factor(part.bn, scale, gradient.bias)
    along_bias = gradient.bias * factor
    first: Gradients = (None, None)
    conv: Optional[Gradients] = None
    own_bias = None
    if part.name == 'residual':
        along = gradient.weight[_diagonal(gradient.weight)]
    elif part.conv is None:  # an average
        height, width = geometry.kernel_size
        taps = _taps(gradient.weight)[:, :, None, None] / (height * width)
        if part.conv1 is None:
            along = taps.view(-1)
        else:
            inner = _first(part.conv1, part.bn1)
            along, own_bias = _dot(taps, inner.weight), inner.bias
            first = _first_gradient(part.conv1, part.bn1, Kernel(taps * _column(factor), along_bias))
    else:
        op = _op(part.conv)
        own_bias = op.bias
        if part.conv1 is not None:
            # the bias that comes through the KxK convolution is in `along` by way of `back`
            back, inner = _chain_gradient(op.weight, _first(part.conv1, part.bn1), gradient, factor, geometry.groups)
            first = _first_gradient(part.conv1, part.bn1, inner)
        else:
            back = _centre(gradient.weight, part)
        along = _dot(back, op.weight)
        by_kernel = Kernel(back * _column(factor), along_bias)
        conv = gradients(part.conv, by_kernel) if isinstance(part.conv, Parts) else by_kernel
    along = along + gradient.bias * _shifted(part.bn, own_bias)
    return (part.name, *first, conv, _norm_gradient(part.bn, scale, along, gradient.bias))


def gradients(parts: Parts, gradient: Kernel) -> Gradients:
    """Gradients of all parameters from that of the equivalent kernel, without those of buffers.

    Args:
        parts (Parts): Numbers of the block.
        gradient (Kernel): Of the block's equivalent kernel.

    Returns:
        tuple: Gradients at the places of the parameters.
    """
    return parts.geometry, None, tuple(_part_gradient(part, parts.geometry, parts.scale, gradient)
                                       for part in parts.branches)
