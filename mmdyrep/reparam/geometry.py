"""The shape of a convolution: everything about it but its numbers."""
from dataclasses import dataclass, replace
from typing import Sequence, Tuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

Pair = Tuple[int, int]


def symmetric_padding(conv: nn.Conv2d) -> Pair:
    """Padding of a convolution as (rows, columns), ``'same'`` and ``'valid'`` resolved.

    Raises:
        ValueError: If ``'same'`` pads the two sides of an axis differently (even kernels).
    """
    if not isinstance(conv.padding, str):
        return cast(Pair, tuple(conv.padding))
    if conv.padding == 'valid':
        return 0, 0
    # not as the attributes say: dilation may have been changed, weights may have been cut since
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.weight.shape[2:])]
    (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in total)
    if left != right or top != bottom:
        raise ValueError(f"padding='same' of a {conv.kernel_size} kernel pads one side more than the other")
    return top, left


@dataclass(frozen=True)
class Geometry:
    """Channels, kernel, stride, padding, dilation and groups of a 2D convolution with zero padding."""

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> 'Geometry':
        """Geometry of ``conv`` as it computes: channels and kernel are its weight's, which may have been pruned."""
        out_channels, in_channels, height, width = conv.weight.shape
        return cls(in_channels * conv.groups, out_channels, (height, width), cast(Pair, tuple(conv.stride)),
                   symmetric_padding(conv), cast(Pair, tuple(conv.dilation)), conv.groups)

    @property
    def centred(self) -> Tuple[bool, bool]:
        """Per axis: is the output at position i centred on input i * stride (odd kernel, 'same' padding)?"""
        rows, columns = (k % 2 == 1 and 2 * p == d * (k - 1)
                         for k, p, d in zip(self.kernel_size, self.padding, self.dilation))
        return rows, columns

    @property
    def depthwise(self) -> bool:
        """Whether each output channel sees just the input channel of its own number."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def unpadded(self) -> 'Geometry':
        """The same on maps that have been padded before."""
        return replace(self, padding=(0, 0))

    def output_size(self, size: Sequence[int]) -> Pair:
        """Height and width of the output for those of the input."""
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in
                         zip(size, self.padding, self.dilation, self.kernel_size, self.stride))
        return height, width

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Pad a map of shape (N, C, H, W) as the convolution does, with zeros or another value."""
        rows, columns = self.padding
        return F.pad(x, (columns, columns, rows, rows), value=value) if rows or columns else x

    def conv(self, kernel_size: Pair, padding: Pair, out_channels: int = 0) -> nn.Conv2d:
        """Bias-free convolution of this geometry but for what is given; an axis of kernel 1 is not dilated."""
        rows, columns = (1 if k == 1 else d for k, d in zip(kernel_size, self.dilation))
        return nn.Conv2d(self.in_channels, out_channels or self.out_channels, kernel_size, self.stride,
                         padding, (rows, columns), self.groups, bias=False)

    def pointwise(self, out_channels: int) -> nn.Conv2d:
        """Bias-free 1x1 convolution from the input to ``out_channels``, stride 1, grouped alike."""
        return nn.Conv2d(self.in_channels, out_channels, 1, groups=self.groups, bias=False)
