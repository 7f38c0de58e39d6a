"""Equivalences of re-parameterization as pure functions on kernels (Section 3 of the paper).

Everything is computed in float64 and in the device of its input, with gradients where they are on; whoever stores a
result casts it once.
"""
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Kernel(NamedTuple):
    """A convolution as numbers: ``weight`` (C_out, C_in / groups, K_h, K_w) and ``bias`` (C_out,), float64."""

    weight: Tensor
    bias: Tensor

    def __add__(self, other: 'Kernel') -> 'Kernel':  # type: ignore[override]
        """Sum of two convolutions of the same geometry (Eq. 2)."""
        return Kernel(self.weight + other.weight, self.bias + other.bias)

    def __neg__(self) -> 'Kernel':
        return Kernel(-self.weight, -self.bias)

    def scaled(self, factor: Tensor) -> 'Kernel':
        """Kernel whose output channels are multiplied by ``factor`` of shape (C_out,)."""
        return Kernel(self.weight * factor.view(-1, 1, 1, 1), self.bias * factor)


def of_conv(conv: nn.Conv2d) -> Kernel:
    """Kernel of a convolution; a missing bias counts as zero."""
    weight = conv.weight.double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
    return Kernel(weight, bias)


def gain(bn: _BatchNorm) -> Tensor:
    """Factor gamma / sqrt(var + eps), shape (C,), by which ``bn`` multiplies its input in eval mode."""
    return bn.weight.double() / deviation(bn)


def deviation(bn: _BatchNorm) -> Tensor:
    """Standard deviation sqrt(var + eps), shape (C,), that ``bn`` divides by in eval mode."""
    return (bn.running_var.double() + bn.eps).sqrt()  # type: ignore[union-attr]


def fuse_bn(kernel: Kernel, bn: _BatchNorm) -> Kernel:
    """Merge the running statistics of a batch norm into the convolution before it (Eq. 8).

    Args:
        kernel (Kernel): The convolution in front of ``bn``.
        bn (_BatchNorm): Affine norm over C_out channels, with running statistics; nn.Identity where a tool has
            merged it already.

    Returns:
        Kernel: The convolution that does both.
    """
    if isinstance(bn, nn.Identity):
        return kernel
    factor = gain(bn)
    mean: Tensor = bn.running_mean  # type: ignore[assignment]
    bias = (kernel.bias - mean.double()) * factor + bn.bias.double()
    return Kernel(kernel.weight * factor.view(-1, 1, 1, 1), bias)


def chain_1x1(first: Kernel, second: Kernel, groups: int) -> Kernel:
    """Merge a 1x1 convolution into the KxK convolution behind it.

    Exact where the second one reads a border of ``first.bias``, that is where zeros are padded
    between the first convolution and its batch norm, not behind it.

    Args:
        first (Kernel): Kernel of shape (C_mid, C_in / groups, 1, 1).
        second (Kernel): Kernel of shape (C_out, C_mid / groups, K_h, K_w).
        groups (int): Groups of both.

    Returns:
        Kernel: Weight of shape (C_out, C_in / groups, K_h, K_w).
    """
    out_channels, _, height, width = second.weight.shape
    inner = first.weight.reshape(groups, -1, first.weight.shape[1])
    outer = second.weight.reshape(groups, out_channels // groups, -1, height, width)
    weight = torch.einsum('gomhw,gmi->goihw', outer, inner).reshape(out_channels, -1, height, width)
    tapped = torch.einsum('gomhw,gm->go', outer, first.bias.reshape(groups, -1)).reshape(-1)
    return Kernel(weight, second.bias + tapped)


def average(kernel: Kernel, height: int, width: int) -> Kernel:
    """Merge a 1x1 convolution with the height x width average pooling behind it (stride and padding alike)."""
    return Kernel(kernel.weight.expand(-1, -1, height, width) / (height * width), kernel.bias)


def embed(kernel: Kernel, height: int, width: int) -> Kernel:
    """Pad a smaller kernel with zeros to height x width, its centre on the centre of the larger one."""
    small_height, small_width = kernel.weight.shape[2:]
    top, left = (height - small_height) // 2, (width - small_width) // 2
    weight = kernel.weight.new_zeros(*kernel.weight.shape[:2], height, width)
    weight[:, :, top:top + small_height, left:left + small_width] = kernel.weight
    return Kernel(weight, kernel.bias)


def identity(channels: int, groups: int, device: Optional[torch.device] = None) -> Kernel:
    """1x1 kernel that copies its input, shape (channels, channels / groups, 1, 1)."""
    weight = torch.zeros(channels, channels // groups, 1, 1, dtype=torch.float64, device=device)
    nn.init.dirac_(weight, groups)
    return Kernel(weight, weight.new_zeros(channels))
