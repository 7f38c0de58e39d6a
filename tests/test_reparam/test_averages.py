"""Averages as sums of shifted maps, and their transpose."""
import torch
import torch.nn.functional as F
from hypothesis import given

from mmdyrep.reparam import Geometry
from mmdyrep.reparam.averages import average, spread
from tests.convolutions import EXACT, convs, error, images_for, seeds


@given(convs(), seeds)
def test_average_and_its_gradient_are_those_of_a_convolution(conv, seed):
    geometry = Geometry.of(conv)
    x = images_for(geometry, seed).requires_grad_()
    before = x.detach().clone()
    height, width = geometry.kernel_size
    weight = x.new_full((geometry.in_channels, 1, height, width), 1 / (height * width))
    wanted = F.conv2d(x, weight, None, geometry.stride, geometry.padding, geometry.dilation, geometry.in_channels)
    assert error(average(x.detach(), geometry), wanted) < EXACT
    upstream = torch.randn_like(wanted)
    by_x, = torch.autograd.grad(wanted, x, upstream)
    assert error(spread(upstream, geometry, x.shape[2:]), by_x) < EXACT
    assert torch.equal(x, before)
