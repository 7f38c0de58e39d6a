"""Arithmetic per channel on maps that lie densely in memory, channels first or last.

As PyTorch's own, only that inner loops run over a row of pixels where channels lie last, not over those of one pixel.
"""
from typing import NamedTuple, Tuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Mean and variance (of the population) of a map's channels, each (C,), and how many values they are of."""

    mean: Tensor
    var: Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count


def layout_of(y: Tensor) -> torch.memory_format:
    """Memory format of a dense map."""
    return torch.contiguous_format if y.is_contiguous() else torch.channels_last


def laid_as(y: Tensor, other: Tensor) -> Tensor:
    """The map itself if it has the layout of the other, else a copy that has."""
    return y.contiguous(memory_format=layout_of(other))


def wide(y: Tensor) -> Tensor:
    """A map in single precision at least."""
    return y.to(torch.promote_types(y.dtype, torch.float32))


def _rows(y: Tensor) -> Tensor:
    if y.is_contiguous():
        return y.view(len(y), y.shape[1], -1)
    return y.permute(0, 2, 3, 1).view(len(y) * y.shape[2], -1)


def _along(vector: Tensor, y: Tensor) -> Tensor:
    """Values of channels, to be broadcast over the rows of a map."""
    return vector.view(-1, 1) if y.is_contiguous() else vector.repeat(y.shape[3])


def _sum(rows: Tensor, y: Tensor) -> Tensor:
    if y.is_contiguous():
        return rows.sum((0, 2))
    return rows.sum(0).view(-1, y.shape[1]).sum(0)


def _like(rows: Tensor, y: Tensor) -> Tensor:
    """Rows as a map of the shape and layout of ``y``."""
    if y.is_contiguous():
        return rows.view(y.shape)
    batch, channels, height, width = y.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def total(y: Tensor) -> Tensor:
    """Sum of each channel, shape (C,)."""
    return _sum(_rows(y), y)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product of two maps for each channel."""
    return _sum(_rows(a) * _rows(b), a)


def moments(y: Tensor, border: int = 0) -> Moments:
    """Moments of a map, of which ``border`` more values per channel are zero; summed in single precision at least."""
    count, rows = y.numel() // y.shape[1] + border, _rows(wide(y))
    mean = _sum(rows, y) / count
    squares = _sum(torch.sub(rows, _along(mean, y)).square_(), y)
    return Moments(mean, (squares + border * mean.square()) / count, count)


def scaled(y: Tensor, factor: Tensor) -> Tensor:
    """A map times the factor of each channel."""
    return _like(_rows(y) * _along(factor, y), y)


def add_scaled(out: Tensor, y: Tensor, factor: Tensor) -> None:
    """Add to a map, in place, another of this layout times the factor of each channel."""
    rows, factor = _rows(out), _along(factor, y)
    if out.dtype == y.dtype == factor.dtype:
        rows.addcmul_(_rows(y), factor)
    else:
        rows.add_(_rows(y) * factor)


def shift(out: Tensor, offset: Tensor) -> Tensor:
    """Add to each channel, in place."""
    _rows(out).add_(_along(offset, out))
    return out


def combined(y: Tensor, gradient: Tensor, by: Tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """``a * gradient + b * y + c`` of channels' ``a, b, c``, in the type of the gradient."""
    a, b, c = (_along(vector, y) for vector in by)
    rows = torch.addcmul(c, _rows(y.to(gradient.dtype)), b)
    return _like(rows.addcmul_(_rows(gradient), a), y)
