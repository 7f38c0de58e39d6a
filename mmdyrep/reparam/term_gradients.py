"""Gradients of a block with statistics of the batch, see :mod:`terms`.

A norm hands the gradient on as ``a * gradient + b * y + c``, per channel; nothing else of a map is needed.
"""
from typing import Any, List, NamedTuple, Optional, Tuple, cast

import torch
from torch import Tensor

from . import maps
from .averages import average, spread
from .maps import Moments
from .merged import Conv, Gradients
from .terms import Found, Norm, Part, Parts, deviation, first_shape, gain, shape_of


class Affine(NamedTuple):
    """``a * gradient + b * y + c``, each (C,): the gradient that a norm hands on to its map."""

    a: Tensor
    b: Tensor
    c: Tensor


def _through_norm(parts: Parts, part: Part, outer: Moments, along: Tensor, total: Tensor,
                  inner: Optional[Tensor] = None) -> Tuple[Affine, Norm, Optional[Tensor]]:
    """Gradients of a branch's last norm.

    Args:
        along, total (Tensor): Sums over the gradient times the map, and over the gradient.
        inner (Tensor, optional): Factor in front of the norm, which the map has not been multiplied by.

    Returns:
        tuple: Gradient of the map, of the norm's parameters, and of ``inner``.
    """
    norm, count = part.bn, outer.count
    factor = torch.ones_like(outer.var) if inner is None else inner
    inverse = (outer.var * factor.square() + norm.eps).rsqrt()
    along = along - outer.mean * total
    normalized = along * factor * inverse
    a = parts.scale * norm.weight * inverse
    b = -a * factor.square() * normalized * inverse / count
    own = Norm(parts.scale * normalized, parts.scale * total, norm.eps)
    affine = Affine(a * factor, b, -a * factor * total / count - b * outer.mean)
    return affine, own, None if inner is None else a * norm.eps * inverse.square() * along


def _through_inner_norm(norm: Norm, inner: Moments, handed_on: Tensor, by_factor: Tensor) -> Tuple[Affine, Norm]:
    """Gradients of a branch's inner norm; what it adds is taken out by the last one.

    Args:
        handed_on (Tensor): What multiplies the gradient that comes back.
        by_factor (Tensor): Gradient of the norm's factor.
    """
    inverse = 1 / deviation(inner, norm)
    b = -by_factor * norm.weight * inverse ** 3 / inner.count
    own = Norm(by_factor * inverse, torch.zeros_like(by_factor), norm.eps)
    return Affine(handed_on, b, -b * inner.mean), own


class _Backward:
    """Gradients of a block, added up branch by branch."""

    def __init__(self, parts: Parts, x: Tensor, low: Optional[torch.dtype], gradient: Tensor, needs_x: bool) -> None:
        self.parts, self.x, self.low, self.gradient, self.needs_x = parts, x, low, gradient, needs_x
        self.total = maps.total(gradient)
        self.by_x: Optional[Tensor] = None

    def add(self, by_x: Optional[Tensor]) -> None:
        if by_x is not None:
            self.by_x = by_x.to(self.gradient.dtype) if self.by_x is None else self.by_x.add_(by_x)

    def through_norm(self, part: Part, y: Tensor, found: Found, inner: Optional[Tensor] = None
                     ) -> Tuple[Tensor, Norm, Optional[Tensor]]:
        """Gradients of the map, of the last norm and of the factor in front of it."""
        affine, norm, by_inner = _through_norm(self.parts, part, found.outer, maps.dot(self.gradient, y), self.total,
                                               inner)
        return maps.combined(y, self.gradient, affine), norm, by_inner

    def part(self, part: Part, found: Found, needs: Any) -> Gradients:
        """Gradients of a branch's numbers; that by the input is added."""
        if part.conv1 is not None and part.bn1 is not None and found.inner is not None:
            return self.chain(part, part.conv1, part.bn1, found, found.inner, needs)
        conv: Any = None
        if isinstance(part.conv, Tensor):
            by_y, norm, _ = self.through_norm(part, part.conv, found)
            conv = by_y.to(part.conv.dtype) if needs.conv else None
        elif part.conv is None:
            plain = part.name == 'residual'
            by_y, norm, _ = self.through_norm(part, self.x if plain else average(maps.wide(self.x),
                                                                                 self.parts.geometry), found)
            if self.needs_x:
                self.add(by_y if plain else spread(by_y, self.parts.geometry, self.x.shape[2:]))
        else:
            shape, weight = shape_of(part.name, self.parts.geometry), part.conv.weight
            y = shape(self.x, weight, self.low) if found.y is None else found.y
            by_y, norm, _ = self.through_norm(part, y, found)
            by_x, by_weight = shape.back(by_y, self.x, weight, self.low, self.needs_x, needs.conv.weight)
            self.add(by_x)
            conv = by_weight, None
        return part.name, None, None, conv, norm

    def chain(self, part: Part, conv1: Conv, bn1: Norm, found: Found, inner: Moments, needs: Any) -> Gradients:
        """As :meth:`part`, of one that begins with a 1x1 convolution and a norm."""
        geometry, shape, conv = self.parts.geometry, first_shape(self.parts.geometry), None
        z = shape(self.x, conv1.weight, self.low)
        factor = gain(inner, bn1)
        if isinstance(part.conv, Conv):
            by_y, norm, _ = self.through_norm(part, cast(Tensor, found.y), found)
            by_seen, by_weight = shape_of(part.name, geometry).back(by_y, maps.scaled(z, factor), part.conv.weight,
                                                                    self.low, True, needs.conv.weight)
            by_z, handed_on = cast(Tensor, by_seen).to(self.gradient.dtype), factor
            by_factor, conv = maps.dot(by_z, z), (by_weight, None)
        else:
            by_y, norm, inner_slope = self.through_norm(part, average(maps.wide(z), geometry), found, factor)
            by_z, handed_on = spread(by_y, geometry, z.shape[2:]), torch.ones_like(factor)
            by_factor = cast(Tensor, inner_slope)
        affine, norm1 = _through_inner_norm(bn1, inner, handed_on, by_factor)
        by_x, by_first = shape.back(maps.combined(z, by_z, affine), self.x, conv1.weight, self.low, self.needs_x,
                                    needs.conv1.weight)
        self.add(by_x)
        return part.name, (by_first, None), norm1, conv, norm


def backward(parts: Parts, x: Tensor, low: Optional[torch.dtype], found: List[Found], gradient: Tensor,
             needs_x: bool, needs: Any) -> Tuple[Optional[Tensor], Gradients]:
    """Gradients of :func:`terms.forward`.

    Args:
        parts, x, low: As there.
        found (list[Found]): What it found.
        gradient (Tensor): Of its output, of the layout of ``x``.
        needs_x (bool): Whether the gradient by ``x`` is asked for.
        needs (Parts): The same of each number, in its place.

    Returns:
        tuple: Gradient by ``x``, and the others at the places of their numbers.
    """
    own = _Backward(parts, x, low, gradient, needs_x)
    branches = tuple(map(own.part, parts.branches, found, needs.branches))
    by_x = None if own.by_x is None else own.by_x.to(x.dtype)  # none where all is in a nested block
    return by_x, (parts.geometry, None, branches)
