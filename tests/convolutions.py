"""Random convolutions of every shape, blocks on them, and the arithmetic to compare them with."""
from typing import Optional, Sequence

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.reparam import Geometry, Statistics, fitting
from mmdyrep.reparam.kernels import Kernel

EXACT = 1e-9

seeds = st.integers(0, 2**31 - 1)


@st.composite
def convs(draw, beside: Optional[str] = None) -> nn.Conv2d:
    """A float64 convolution: kernel 2 to 7, any stride, dilation, groups, padding, with or without bias.

    Args:
        beside (str, optional): A branch that shall fit the convolution.
    """
    centre = beside in ('1x1', '1xk', 'kx1', 'residual')
    kernel = draw(st.sampled_from([(3, 3), (5, 5), (3, 5), (7, 7), (5, 3), (3, 7)]) if centre else
                  st.sampled_from([(3, 3), (5, 5), (3, 5), (7, 7)]) | st.tuples(st.integers(2, 7), st.integers(2, 7)))
    stride = (1, 1) if beside == 'residual' else draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 1)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3), (2, 1)]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kind = draw(st.sampled_from(['equal', 'depthwise'] + ['other', 'multiplier'] * (beside != 'residual')))
    width = groups * draw(st.integers(1, 2))
    if kind in ('depthwise', 'multiplier'):
        groups = width
    channels = {'equal': width, 'depthwise': width, 'multiplier': 2 * width,
                'other': groups * draw(st.integers(1, 3))}[kind]
    centred = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation))
    paddings = st.just(centred)
    if not centre:
        paddings |= st.sampled_from([(0, 0), (1, 1), (2, 0), (1, 3), 'valid'])
        paddings |= st.just(centred)
        if stride == (1, 1) and all(d * (k - 1) % 2 == 0 for k, d in zip(kernel, dilation)):
            paddings |= st.just('same')
    conv = nn.Conv2d(width, channels, kernel, stride, draw(paddings), dilation, groups, bias=draw(st.booleans()))
    return scatter(conv.double(), draw(seeds))


def scatter(module: nn.Module, seed: int) -> nn.Module:
    """Draw all weights, gammas, betas and statistics anew, gammas of either sign, none near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.Conv2d):
                for parameter in child.parameters(recurse=False):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif isinstance(child, _BatchNorm):
                size = child.num_features
                child.running_mean.copy_(torch.randn(size, generator=generator))
                child.running_var.copy_(torch.rand(size, generator=generator) * 3 + 0.05)
                sign = torch.randint(0, 2, (size, ), generator=generator) * 2 - 1
                child.weight.copy_(sign * (torch.rand(size, generator=generator) + 0.2))
                child.bias.copy_(torch.randn(size, generator=generator))
    return module


def images_for(geometry: Geometry, seed: int, batch: int = 2) -> Tensor:
    """Maps large enough for the convolution, of an odd size that stride and kernel do not divide evenly."""
    size = [max(d * (k - 1) + 1 - 2 * p, 1) + 2 * s + 1 for k, p, d, s in
            zip(geometry.kernel_size, geometry.padding, geometry.dilation, geometry.stride)]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, geometry.in_channels, *size, dtype=torch.float64, generator=generator)


def convolve(x: Tensor, kernel: Kernel, geometry: Geometry) -> Tensor:
    """The convolution of this geometry with these numbers, by PyTorch."""
    return F.conv2d(x, kernel.weight, kernel.bias, geometry.stride, geometry.padding, geometry.dilation,
                    geometry.groups)


def error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest wanted value; shapes must agree."""
    assert got.shape == wanted.shape
    scale = wanted.abs().max().item()
    return (got - wanted).abs().max().item() / (scale or 1.0)


def network(conv: nn.Conv2d, seed: int) -> nn.Sequential:
    """The convolution with a scattered batch norm and a ReLU behind, as ``conv``, ``bn``, ``relu``."""
    net = nn.Sequential()
    net.add_module('conv', conv)
    net.add_module('bn', nn.BatchNorm2d(conv.out_channels, eps=1e-3))
    net.add_module('relu', nn.ReLU())
    scatter(net[1].double(), seed)
    return net


def choose(space: Sequence[str], geometry: Geometry, seed: int) -> list:
    """Some of the branches that fit, at least one if any does."""
    fits = fitting(list(space), geometry)
    if not fits:
        return []
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(fits), generator=generator).tolist()
    return [fits[i] for i in order[:int(torch.randint(1, len(fits) + 1, (), generator=generator))]]


def batch_measure(net: nn.Module, x: Tensor):
    """A `Measure` of exactly what train mode normalizes with on ``x``: mean and biased variance."""

    def measure(norms: Sequence[_BatchNorm]) -> list:
        found, hooks = {}, []
        before = [(buffer, buffer.clone()) for buffer in net.buffers()]

        def look(norm: nn.Module, inputs: tuple) -> None:
            found[norm] = biased(inputs[0])

        modes = [(norm, norm.training) for norm in norms]
        for norm in norms:
            norm.training = True
            hooks.append(norm.register_forward_pre_hook(look))
        with torch.no_grad():
            net(x)
            for buffer, value in before:
                buffer.copy_(value)
        for hook in hooks:
            hook.remove()
        for norm, mode in modes:
            norm.training = mode
        return [found[norm] for norm in norms]

    return measure


def biased(x: Tensor) -> Statistics:
    """Mean and biased variance per channel."""
    var, mean = torch.var_mean(x.detach(), dim=(0, 2, 3), unbiased=False)
    return Statistics(mean, var)


def use_batch_statistics(module: nn.Module, x: Tensor) -> Tensor:
    """Run in train mode on ``x`` and leave in each batch norm the statistics that it normalized with."""
    hooks = []

    def keep(norm: _BatchNorm, inputs: tuple) -> None:
        norm.wanted = biased(inputs[0])

    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    with torch.no_grad():
        out = module.train()(x).clone()
        for hook in hooks:
            hook.remove()
        for norm in norms:
            norm.running_mean.copy_(norm.wanted.mean)
            norm.running_var.copy_(norm.wanted.var)
            del norm.wanted
    return out

