"""Each equivalence against the two convolutions or norms that it merges, run by PyTorch."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import nn

from mmdyrep.reparam import Geometry, kernels
from tests.convolutions import EXACT, convolve, convs, error, images_for, scatter, seeds


def norm(channels: int, seed: int, eps: float = 1e-5) -> nn.BatchNorm2d:
    return scatter(nn.BatchNorm2d(channels, eps=eps).double(), seed).eval()


@given(convs(), seeds, st.sampled_from([1e-5, 1e-3, 0.5]))
def test_a_norm_is_merged_into_the_convolution_in_front(conv, seed, eps):
    bn = norm(conv.out_channels, seed, eps)
    geometry = Geometry.of(conv)
    x = images_for(geometry, seed)
    merged = convolve(x, kernels.fuse_bn(kernels.of_conv(conv), bn), geometry)
    assert error(merged, bn(conv(x))) < EXACT


@given(seeds)
def test_gain_times_deviation_is_gamma(seed):
    bn = norm(5, seed, eps=0.1)
    torch.testing.assert_close(kernels.gain(bn) * kernels.deviation(bn), bn.weight.detach())
    x = torch.randn(3, 5, 2, 2, dtype=torch.float64)
    assert error(bn(x) - bn(torch.zeros_like(x)), x * kernels.gain(bn).view(1, -1, 1, 1)) < EXACT


@given(convs(), convs(), seeds)
def test_kernels_add_as_outputs_do(conv, other, seed):
    geometry = Geometry.of(conv)
    first = kernels.of_conv(conv)
    second = kernels.Kernel(torch.randn_like(first.weight), torch.randn_like(first.bias))
    x, factor = images_for(geometry, seed), torch.randn_like(first.bias)
    assert error(convolve(x, first + second, geometry),
                 convolve(x, first, geometry) + convolve(x, second, geometry)) < EXACT
    assert error(convolve(x, -first, geometry), -convolve(x, first, geometry)) < EXACT
    assert error(convolve(x, first.scaled(factor), geometry),
                 convolve(x, first, geometry) * factor.view(1, -1, 1, 1)) < EXACT


@given(convs(), st.integers(1, 3), seeds)
def test_a_pointwise_convolution_is_merged_into_the_one_behind(conv, width, seed):
    geometry = replace(Geometry.of(conv), padding=(0, 0))
    middle = geometry.in_channels
    first = scatter(nn.Conv2d(width * geometry.groups, middle, 1, groups=geometry.groups).double(), seed)
    x = images_for(replace(geometry, in_channels=first.in_channels), seed)
    merged = kernels.chain_1x1(kernels.of_conv(first), kernels.of_conv(conv), geometry.groups)
    wanted = convolve(first(x), kernels.of_conv(conv), geometry)
    assert error(convolve(x, merged, replace(geometry, in_channels=first.in_channels)), wanted) < EXACT


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), seeds)
def test_an_average_is_merged_into_the_pointwise_convolution_in_front(height, width, stride, seed):
    first = scatter(nn.Conv2d(3, 4, 1).double(), seed)
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    merged = kernels.average(kernels.of_conv(first), height, width)
    assert merged.weight.shape == (4, 3, height, width)
    wanted = F.avg_pool2d(first(x), (height, width), stride)
    assert error(F.conv2d(x, merged.weight, merged.bias, stride), wanted) < EXACT


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), seeds)
def test_a_smaller_kernel_keeps_its_centre(top, left, half_height, half_width, seed):
    small = scatter(nn.Conv2d(3, 4, (2 * half_height + 1, 2 * half_width + 1),
                              padding=(half_height, half_width)).double(), seed)
    height, width = 2 * (half_height + top) + 1, 2 * (half_width + left) + 1
    large = kernels.embed(kernels.of_conv(small), height, width)
    assert large.weight.shape == (4, 3, height, width)
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert error(F.conv2d(x, large.weight, large.bias, padding=(height // 2, width // 2)), small(x)) < EXACT


@pytest.mark.parametrize('channels, groups', [(1, 1), (4, 1), (6, 2), (6, 3), (6, 6)])
def test_identity_copies_its_input(channels, groups):
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64)
    kernel = kernels.identity(channels, groups)
    assert kernel.weight.shape == (channels, channels // groups, 1, 1)
    assert torch.equal(F.conv2d(x, kernel.weight, kernel.bias, groups=groups), x)


def test_results_are_float64_whatever_goes_in():
    conv, bn = nn.Conv2d(4, 4, 3).half(), nn.BatchNorm2d(4)
    merged = kernels.fuse_bn(kernels.of_conv(conv), bn)
    assert merged.weight.dtype == merged.bias.dtype == torch.float64
    # gradients reach what they are made of
    sum(part.sum() for part in merged).backward()
    assert conv.weight.grad.dtype == torch.float16 and bn.weight.grad.abs().sum() > 0
