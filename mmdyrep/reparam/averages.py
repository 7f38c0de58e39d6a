"""The average over a KxK window as sums of shifted maps, and its transpose.

On the CPU several times as fast as PyTorch's average pooling, and good for dilated windows.
"""
from typing import Iterator, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import maps
from .geometry import Geometry


def _shifted(x: Tensor, axis: int, taps: int, size: int, stride: int, dilation: int) -> Iterator[Tensor]:
    """What each tap of a window sees along an axis of a padded map, as views."""
    for tap in range(taps):
        begin = tap * dilation
        window = slice(begin, begin + (size - 1) * stride + 1, stride)
        yield x[:, :, window] if axis == 0 else x[..., window]


def _axes(geometry: Geometry, size: Sequence[int]) -> Iterator[Tuple[int, int, int, int, int]]:
    sizes = geometry.output_size(size)
    for axis in (0, 1):
        yield axis, geometry.kernel_size[axis], sizes[axis], geometry.stride[axis], geometry.dilation[axis]


def average(x: Tensor, geometry: Geometry) -> Tensor:
    """Average of a map over the window of a convolution, zeros padded.

    Args:
        x (Tensor): Shape (N, C, H, W).
        geometry (Geometry): Kernel, stride, padding and dilation.

    Returns:
        Tensor: Shape (N, C, H', W').
    """
    out = geometry.pad(x)
    for axis in _axes(geometry, x.shape[2:]):
        first, *others = _shifted(out, *axis)
        total = first.clone()
        for other in others:
            total += other
        out = total
    return maps.laid_as(out.mul_(1 / (geometry.kernel_size[0] * geometry.kernel_size[1])), x)


def spread(gradient: Tensor, geometry: Geometry, size: Sequence[int]) -> Tensor:
    """Gradient of :func:`average` by its map.

    Args:
        gradient (Tensor): Shape (N, C, H', W').
        geometry (Geometry): As there.
        size (Sequence[int]): Height and width of the map.

    Returns:
        Tensor: Shape (N, C, H, W).
    """
    rows, columns = geometry.padding
    out = gradient * (1 / (geometry.kernel_size[0] * geometry.kernel_size[1]))
    for axis in reversed(list(_axes(geometry, size))):
        padded = list(out.shape)
        padded[2 + axis[0]] = size[axis[0]] + 2 * geometry.padding[axis[0]]
        total = torch.empty(padded, dtype=out.dtype, device=out.device, memory_format=maps.layout_of(gradient)).zero_()
        for part in _shifted(total, *axis):
            part += out
        out = total
    out = F.pad(out, (-columns, -columns, -rows, -rows)) if rows or columns else out
    return maps.laid_as(out, gradient)
