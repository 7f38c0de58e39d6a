"""Networks whose state dicts have the layouts of other code: DyRep's authors', DBB's, RepVGG's."""
from typing import Any, Dict, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


class NormThenPad(nn.Module):
    """Batch norm, then a border of what it makes of zero."""

    def __init__(self, channels: int, border: int) -> None:
        super().__init__()
        self.bn, self.border = nn.BatchNorm2d(channels), border

    def forward(self, x: Tensor) -> Tensor:
        bn, width = self.bn, self.border
        value = bn.bias - bn.weight * bn.running_mean / (bn.running_var + bn.eps).sqrt()
        out = value.view(1, -1, 1, 1).repeat(len(x), 1, x.shape[2] + 2 * width, x.shape[3] + 2 * width)
        out[:, :, width:width + x.shape[2], width:width + x.shape[3]] = bn(x)
        return out


class ConvNorm(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class NearIdentity(nn.Conv2d):
    """1x1 convolution that stores its difference from the identity."""

    def forward(self, input: Tensor) -> Tensor:
        copied = torch.stack([torch.arange(self.weight.shape[1]) == i % self.weight.shape[1]
                              for i in range(self.out_channels)])
        return F.conv2d(input, self.weight + copied[:, :, None, None].to(self.weight), groups=self.groups)


def _like(conv: nn.Conv2d, kernel: Any, padding: Any, bias: bool = False, **changes: Any) -> nn.Conv2d:
    settings = dict(in_channels=conv.in_channels, out_channels=conv.out_channels, stride=conv.stride,
                    groups=conv.groups)
    return nn.Conv2d(kernel_size=kernel, padding=padding, bias=bias, **{**settings, **changes})


def _named(**parts: nn.Module) -> nn.Sequential:
    out = nn.Sequential()
    for name, part in parts.items():
        out.add_module(name, part)
    return out


class AuthorsBlock(nn.Module):
    """Block of DyRep's authors, in place of a convolution; the norm behind stays."""

    def __init__(self, conv: nn.Conv2d, branches: Sequence[str]) -> None:
        super().__init__()
        (k, _), (p, _), inner, outer = conv.kernel_size, conv.padding, conv.in_channels, conv.out_channels
        self.dbb_kxk = ConvNorm(_like(conv, k, p, bias=True))
        if '1x1' in branches:
            self.dbb_1x1 = ConvNorm(_like(conv, 1, 0))
        if '1x1_kxk' in branches:
            self.dbb_1x1_kxk = _named(conv1=_like(conv, 1, 0, stride=1, out_channels=inner), bn1=NormThenPad(inner, p),
                                      conv2=_like(conv, k, 0), bn2=nn.BatchNorm2d(outer))
        if '1x1_avg' in branches:
            first = dict(conv=_like(conv, 1, 0, stride=1), bn=NormThenPad(outer, p)) if conv.groups < outer else {}
            self.dbb_1x1_avg = _named(**first, avg=nn.AvgPool2d(k, conv.stride, 0 if first else p),
                                      avgbn=nn.BatchNorm2d(outer))
        if '1xk' in branches:
            self.dbb_1xk = ConvNorm(_like(conv, (1, k), (0, p)))
        if 'kx1' in branches:
            self.dbb_kx1 = ConvNorm(_like(conv, (k, 1), (p, 0)))
        if 'residual' in branches:
            self.dbb_id = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.children())


class DBB(nn.Module):
    """DBB's block: the norm behind the convolution is gone; depthwise ones are twice as wide inside."""

    def __init__(self, conv: nn.Conv2d, act: bool) -> None:
        super().__init__()
        (k, _), (p, _), inner, outer = conv.kernel_size, conv.padding, conv.in_channels, conv.out_channels
        self.act = act
        self.dbb_origin = ConvNorm(_like(conv, k, p))
        if conv.groups < outer:
            self.dbb_avg = _named(conv=_like(conv, 1, 0, stride=1), bn=NormThenPad(outer, p),
                                  avg=nn.AvgPool2d(k, conv.stride), avgbn=nn.BatchNorm2d(outer))
            self.dbb_1x1 = ConvNorm(_like(conv, 1, 0))
            first: Dict[str, nn.Module] = dict(idconv1=NearIdentity(inner, inner, 1, groups=conv.groups, bias=False))
            width = inner
        else:
            self.dbb_avg = _named(avg=nn.AvgPool2d(k, conv.stride, p), avgbn=nn.BatchNorm2d(outer))
            width = 2 * inner
            first = dict(conv1=_like(conv, 1, 0, stride=1, out_channels=width))
        self.dbb_1x1_kxk = _named(**first, bn1=NormThenPad(width, p), conv2=_like(conv, k, 0, in_channels=width),
                                  bn2=nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        out = sum(branch(x) for branch in self.children())
        return out.relu() if self.act else out


class RepVGGBlock(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(outer) if inner == outer and stride == 1 else None
        self.rbr_dense = ConvNorm(nn.Conv2d(inner, outer, 3, stride, 1, bias=False))
        self.rbr_1x1 = ConvNorm(nn.Conv2d(inner, outer, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.children()).relu()


class Fused(nn.Module):
    """What such blocks become when they are fused: a convolution with a bias."""

    def __init__(self, name: str, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.add_module(name, nn.Conv2d(inner, outer, 3, stride, 1))

    def forward(self, x: Tensor) -> Tensor:
        return next(self.children())(x).relu()


# ---------------------------------------------------------------------------- networks


class LikeTorchvision(nn.Module):
    """The parts of a plain ResNet of mmpretrain and a classifier, by the names that torchvision has."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        for name, part in backbone.named_children():
            self.add_module(name, part)
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def _conv_norm(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True,
               blocks: bool = True) -> nn.Module:
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
    if kernel in (1, 7) or not blocks:
        return _named(conv=conv, bn=nn.BatchNorm2d(outer), **(dict(act=nn.ReLU()) if act else {}))
    return DBB(conv, act)


class DBBStage(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inner != outer:
            self.shortcut = _conv_norm(inner, outer, 1, stride, act=False)
        self.conv1 = _conv_norm(inner, outer, 3, stride)
        self.conv2 = _conv_norm(outer, outer, 3, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.shortcut(x)).relu()


class DBBResNet(nn.Module):
    """ResNet-18 as DBB's repository names it."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.stage0 = _named(conv1=_conv_norm(3, base, 7, 2), maxpool=nn.MaxPool2d(3, 2, 1))
        inner = base
        for index in range(4):
            outer = base * 2 ** index
            self.add_module(f'stage{index + 1}', nn.Sequential(
                DBBStage(inner, outer, 2 if index else 1), DBBStage(outer, outer, 1)))
            inner = outer
        self.linear = nn.Linear(inner, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(5):
            x = getattr(self, f'stage{index}')(x)
        return self.linear(x.mean((2, 3)))


class Separable(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.depthwise = _conv_norm(inner, inner, 3, stride, groups=inner)
        self.pointwise = _conv_norm(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class DBBMobileNet(nn.Module):
    """MobileNet V1 as DBB's repository names it."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.conv1 = _conv_norm(3, base, 3, 2)
        widths = [base * factor for factor in (1, 2, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16, 32, 32)]
        self.stem = nn.Sequential(*(Separable(inner, outer, 2 if index in (1, 3, 5, 11) else 1)
                                    for index, (inner, outer) in enumerate(zip(widths, widths[1:]))))
        self.linear = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.stem(self.conv1(x)).mean((2, 3)))


class RepVGG(nn.Module):
    """RepVGG as its repository names it; with the name of the fused convolution its deploy form."""

    def __init__(self, depths: Sequence[int], widths: Sequence[int], fused: Optional[str] = None) -> None:
        super().__init__()

        def block(inner: int, outer: int, stride: int) -> nn.Module:
            return Fused(fused, inner, outer, stride) if fused else RepVGGBlock(inner, outer, stride)

        self.stage0 = block(3, widths[0], 2)
        for index, (depth, inner, outer) in enumerate(zip(depths, widths, widths[1:])):
            self.add_module(f'stage{index + 1}', nn.Sequential(
                *(block(outer if place else inner, outer, 1 if place else 2) for place in range(depth))))
        self.linear = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(5):
            x = getattr(self, f'stage{index}')(x)
        return self.linear(x.mean((2, 3)))
