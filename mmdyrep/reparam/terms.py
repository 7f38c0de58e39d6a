"""A block with statistics of the batch as one sum, and its gradients.

Behind its linear ops a branch adds ``factor * y + offset`` to the output, both per channel, whatever norms it has:

- The last norm sees the map of its op, ``y``, whose mean and variance make the factor and the offset.
- In ``1x1_kxk`` the KxK convolution sees the same border everywhere (zeros are padded in front of the norm), so what
  the inner norm subtracts and adds comes out as a constant per channel, which the last norm takes out. What is left of
  the inner norm is a factor on what the convolution sees, and in ``1x1_avg`` on the average.

So no normalized map is ever made. Maps of convolutions larger than 1x1 are kept for backward, all others are computed
again from the input.
"""
from typing import List, NamedTuple, Optional, Tuple, Union, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import maps
from .averages import average
from .geometry import Geometry, Pair
from .maps import Moments
from .merged import Conv

_backward = torch.ops.aten.convolution_backward


class Norm(NamedTuple):
    """Numbers of a batch norm that works with statistics of the batch."""

    weight: Tensor
    bias: Tensor
    eps: float


class Part(NamedTuple):
    """Numbers of a branch; what the branch does not have is None."""

    name: str
    conv1: Optional[Conv]
    bn1: Optional[Norm]
    conv: Union[Conv, Tensor, None]  # a tensor: the map that a nested block has made
    bn: Norm


class Parts(NamedTuple):
    """Numbers of a block: ``scale`` (C_out,), and its branches, the original first."""

    geometry: Geometry
    scale: Tensor
    branches: Tuple[Part, ...]


class Found(NamedTuple):
    """What the forward pass of a branch finds."""

    y: Optional[Tensor]  # the map of a convolution larger than 1x1
    outer: Moments  # of the map that the last norm's factor belongs to
    inner: Optional[Moments]  # of the 1x1 convolution, padded


# ---------------------------------------------------------------------- per channel

def deviation(found: Moments, norm: Norm) -> Tensor:
    """What a norm divides by."""
    return (found.var + norm.eps).sqrt()


def gain(found: Moments, norm: Norm) -> Tensor:
    """What a norm multiplies by."""
    return norm.weight / deviation(found, norm)


def seen(part: Part, found: Found, geometry: Geometry) -> Moments:
    """Moments of what the last norm of a branch sees when modules are called one by one."""
    if found.inner is None or part.bn1 is None:
        return found.outer
    factor = gain(found.inner, part.bn1)
    shift = part.bn1.bias - factor * found.inner.mean
    if not isinstance(part.conv, Conv):
        return Moments(found.outer.mean * factor + shift, found.outer.var * factor.square(), found.outer.count)
    taps = part.conv.weight[0, 0].numel()
    everywhere = shift.view(geometry.groups, -1, 1).expand(-1, -1, taps).reshape(geometry.groups, -1, 1)
    constant = part.conv.weight.reshape(geometry.groups, -1, everywhere.shape[1]) @ everywhere
    return Moments(found.outer.mean + constant.view(-1), found.outer.var, found.outer.count)


# ---------------------------------------------------------------------- convolutions

class Shape(NamedTuple):
    """Stride, padding, dilation and groups of a convolution."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def __call__(self, x: Tensor, weight: Tensor, low: Optional[torch.dtype]) -> Tensor:
        """Convolution, in lower precision if one is given."""
        if low is not None:
            x, weight = x.to(low), weight.to(low)
        shape, x = self._of_its_pixels(x, weight)
        return maps.laid_as(F.conv2d(x, weight, None, *shape), x)

    def _of_its_pixels(self, x: Tensor, weight: Tensor) -> Tuple['Shape', Tensor]:
        """A 1x1 convolution with a stride as one without, of the pixels that it sees.

        In PyTorch 2.1 the gradient of the kernel of the former overwrites memory that is not its own, on the CPU with
        channels last.
        """
        if weight.shape[2:].numel() > 1 or self.padding != (0, 0) or self.stride == (1, 1):
            return self, x
        rows, columns = self.stride
        return self._replace(stride=(1, 1)), maps.laid_as(x[:, :, ::rows, ::columns], x)

    def back(self, gradient: Tensor, x: Tensor, weight: Tensor, low: Optional[torch.dtype], needs_x: bool,
             needs_weight: bool) -> Tuple[Optional[Tensor], Optional[Tensor]]:
        """Gradients by the map and by the kernel, the latter in its precision."""
        if not (needs_x or needs_weight):
            return None, None
        cast = weight
        if low is not None:
            gradient, x, cast = gradient.to(low), x.to(low), weight.to(low)
        shape, seen_of_x = self._of_its_pixels(x, cast)
        by_x, by_weight, _ = _backward(gradient, seen_of_x, cast, None, shape.stride, shape.padding, shape.dilation,
                                       False, (0, 0), shape.groups, (needs_x, needs_weight, False))
        if needs_x and shape != self:
            by_seen, by_x = by_x, torch.zeros_like(x, dtype=by_x.dtype)
            by_x[:, :, ::self.stride[0], ::self.stride[1]] = by_seen
        elif needs_x:
            by_x = maps.laid_as(by_x, x)
        return by_x, by_weight.to(weight.dtype) if needs_weight else None


def shape_of(name: str, geometry: Geometry) -> Shape:
    """Shape of a branch's convolution behind whatever 1x1 convolution it has."""
    rows, columns = geometry.padding
    padding = {'1x1': (0, 0), '1xk': (0, columns), 'kx1': (rows, 0)}.get(name, (rows, columns))
    dilation = {'1x1': (1, 1), '1xk': (1, geometry.dilation[1]), 'kx1': (geometry.dilation[0], 1)}
    return Shape(geometry.stride, padding, dilation.get(name, geometry.dilation), geometry.groups)


def first_shape(geometry: Geometry) -> Shape:
    """Shape of the 1x1 convolution at the begin of a branch."""
    return Shape((1, 1), (0, 0), (1, 1), geometry.groups)


# ---------------------------------------------------------------------- the sum

class _Sum:
    """``scale * sum_j BN_j(y_j)``, added up in place."""

    def __init__(self, scale: Tensor) -> None:
        self.scale, self.offset = scale, torch.zeros_like(scale)
        self.out: Optional[Tensor] = None

    def add(self, y: Tensor, norm: Norm, found: Moments, inner: Optional[Tensor] = None) -> None:
        """Add a map; ``inner`` is a factor that it has yet to be multiplied by in front of the norm."""
        if inner is None:
            factor = self.scale * norm.weight / deviation(found, norm)
        else:
            factor = self.scale * norm.weight * inner / (found.var * inner.square() + norm.eps).sqrt()
        self.offset += self.scale * norm.bias - factor * found.mean
        if self.out is None:
            self.out = maps.scaled(y, factor)
        else:
            maps.add_scaled(self.out, y, factor)


def forward(parts: Parts, x: Tensor, low: Optional[torch.dtype]) -> Tuple[Tensor, List[Found]]:
    """Output of a block whose norms work with statistics of the batch.

    Args:
        parts (Parts): Its numbers; the map itself in place of a convolution that has been applied already.
        x (Tensor): Map of shape (N, C_in, H, W), dense; all maps are of its layout.
        low (torch.dtype, optional): Precision of convolutions, if not that of their arguments.

    Returns:
        tuple: The output (N, C_out, H', W'), and what has been found of each branch.
    """
    geometry, found, total = parts.geometry, [], _Sum(parts.scale)
    height, width = x.shape[2:]
    border = len(x) * ((height + 2 * geometry.padding[0]) * (width + 2 * geometry.padding[1]) - height * width)
    for part in parts.branches:
        kept = inner = factor = None
        y = x
        if part.conv1 is not None and part.bn1 is not None:
            y = first_shape(geometry)(x, part.conv1.weight, low)
            inner = maps.moments(y, border)
            factor = gain(inner, part.bn1)
        if isinstance(part.conv, Tensor):
            y = part.conv
        elif part.name == '1x1_avg':
            y = average(maps.wide(y), geometry)
        elif part.conv is not None:
            if factor is not None:
                y, factor = maps.scaled(y, factor).to(y.dtype), None
            y = shape_of(part.name, geometry)(y, part.conv.weight, low)
            kept = None if part.name == '1x1' else y
        found.append(Found(kept, maps.moments(y), inner))
        total.add(y, part.bn, found[-1].outer, factor)
    return maps.shift(cast(Tensor, total.out), total.offset), found
