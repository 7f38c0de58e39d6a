"""Random networks of convolutions and batch norms, sequences and shortcuts mixed."""
import random
from typing import List

import torch
from torch import Tensor, nn

from .convolutions import scatter


def _size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class RandomNetwork(nn.Module):
    """Layers of convolution, norm (most of them) and leaky ReLU, with a shortcut wherever shapes allow one.

    Args:
        shape (int): Seed of the architecture: kernels 2 to 7, strides, dilations, groups, paddings, biases.
        numbers (int): Seed of weights and statistics.
    """

    def __init__(self, shape: int, numbers: int) -> None:
        super().__init__()
        draw = random.Random(shape)
        channels, size = draw.choice([1, 2, 3, 4]), (draw.randint(18, 24), draw.randint(18, 24))
        self.input_shape = (channels, *size)
        self.shortcut: List[bool] = []
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(draw.randint(2, 4)):
            conv = self._conv(draw, channels, size)
            after = tuple(map(_size, size, conv.kernel_size, conv.stride, conv.padding, conv.dilation))
            self.shortcut.append(after == size and conv.out_channels == channels)
            self.convs.append(conv)
            with_norm = conv.bias is None or draw.random() < 0.5
            self.norms.append(nn.BatchNorm2d(conv.out_channels, eps=draw.choice([1e-5, 1e-3])) if with_norm
                              else nn.Identity())
            channels, size = conv.out_channels, after
        scatter(self.double(), numbers).eval()

    @staticmethod
    def _conv(draw: random.Random, channels: int, size: tuple) -> nn.Conv2d:
        kernel = draw.choice([(3, 3), (3, 3), (5, 5), (3, 5), (7, 7), (draw.randint(2, 7), draw.randint(2, 7))])
        stride = draw.choice([(1, 1), (1, 1), (1, 1), (2, 2), (1, 2)])
        dilation = draw.choice([(1, 1), (1, 1), (2, 2), (1, 3)])
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation))
        if draw.random() < 0.3:
            padding = draw.choice([(0, 0), (1, 2), (3, 3), padding])
        if min(map(_size, size, kernel, stride, padding, dilation)) < 4:
            stride, padding = (1, 1), tuple(d * (k - 1) // 2 + 1 for k, d in zip(kernel, dilation))
        groups = draw.choice([g for g in (1, 1, 2, 3, channels) if channels % g == 0])
        out = draw.choice([channels, channels, groups * draw.randint(1, 3)])
        return nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=draw.random() < 0.3)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm, shortcut in zip(self.convs, self.norms, self.shortcut):
            out = nn.functional.leaky_relu(norm(conv(x)), 0.2)
            x = out + x if shortcut else out
        return x

    def images(self, seed: int, batch: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *self.input_shape, dtype=torch.float64, generator=generator)
