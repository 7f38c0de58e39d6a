"""Blocks as one would write them by hand, to measure against: sums of nn.Sequential."""
from typing import List

from torch import Tensor, nn


class Summed(nn.Module):
    """Branches, each with a batch norm at its end, and their sum."""

    def __init__(self, branches: List[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Map of shape (N, C, H, W) to one of the same shape."""
        return sum(branch(x) for branch in self.branches)


def conv_bn(channels: int, height: int = 3, width: int = 3, padded: bool = True, out: int = 0,
            stride: int = 1) -> List[nn.Module]:
    """Convolution without bias, and its batch norm."""
    padding = (height // 2, width // 2) if padded else 0
    out = out or channels
    return [nn.Conv2d(channels, out, (height, width), stride, padding, bias=False), nn.BatchNorm2d(out)]


def plain(channels: int) -> nn.Module:
    """One 3x3 convolution and its norm."""
    return nn.Sequential(*conv_bn(channels))


def dbb(channels: int, out: int = 0, stride: int = 1) -> nn.Module:
    """The four branches of DBB: 3x3, 1x1, 1x1-3x3, 1x1-average."""
    return Summed(_dbb(channels, out or channels, stride))


def seven(channels: int) -> nn.Module:
    """The seven branches of DyRep (Table 1)."""
    return Summed([*_dbb(channels, channels, 1), nn.Sequential(*conv_bn(channels, 1, 3)),
                   nn.Sequential(*conv_bn(channels, 3, 1)), nn.BatchNorm2d(channels)])


def with_dbb(model: nn.Module) -> nn.Module:
    """Put DBB's branches in place of every 3x3 convolution; the norm behind stays, as in our blocks."""
    for name, conv in list(model.named_modules()):
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.groups == 1:
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child, dbb(conv.in_channels, conv.out_channels, conv.stride[0]))
    return model


def _dbb(channels: int, out: int, stride: int) -> List[nn.Module]:
    # zeros are padded between the 1x1 convolution and its norm, as in our blocks
    inner = [nn.Conv2d(channels, channels, 1, bias=False), nn.ZeroPad2d(1), nn.BatchNorm2d(channels)]
    again = [nn.Conv2d(channels, out, 1, bias=False), nn.ZeroPad2d(1), nn.BatchNorm2d(out)]
    return [nn.Sequential(*conv_bn(channels, out=out, stride=stride)),
            nn.Sequential(*conv_bn(channels, 1, 1, out=out, stride=stride)),
            nn.Sequential(*inner, *conv_bn(channels, padded=False, out=out, stride=stride)),
            nn.Sequential(*again, nn.AvgPool2d(3, stride), nn.BatchNorm2d(out))]
