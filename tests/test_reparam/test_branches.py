"""Each branch against its equivalent kernel, in eval mode and with the statistics of a batch in train mode."""
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from mmdyrep.reparam import BRANCHES, SPACES, Geometry, fitting, resolve_space
from mmdyrep.reparam.branches import KxK
from tests.convolutions import EXACT, convolve, convs, error, images_for, scatter, seeds, use_batch_statistics

ADDED = [name for name in BRANCHES if name != 'kxk']


def branch_of(name: str, conv: nn.Conv2d, seed: int) -> nn.Module:
    geometry = Geometry.of(conv)
    conv.bias = None
    branch = KxK(geometry, nn.BatchNorm2d, conv) if name == 'kxk' else BRANCHES[name](geometry, nn.BatchNorm2d)
    return scatter(branch.double(), seed)


@pytest.mark.parametrize('name', BRANCHES)
@given(data=st.data(), seed=seeds)
def test_eval_output_is_that_of_the_equivalent_kernel(name, data, seed):
    conv = data.draw(convs(beside=name))
    branch = branch_of(name, conv, seed).eval()
    x = images_for(branch.geometry, seed)
    assert error(branch(x), convolve(x, branch.kernel(), branch.geometry)) < EXACT


@pytest.mark.parametrize('name', BRANCHES)
@given(data=st.data(), seed=seeds)
def test_train_output_is_that_of_the_equivalent_kernel_at_the_statistics_of_the_batch(name, data, seed):
    conv = data.draw(convs(beside=name))
    branch = branch_of(name, conv, seed)
    x = images_for(branch.geometry, seed)
    out = use_batch_statistics(branch, x)
    assert error(out, convolve(x, branch.kernel(), branch.geometry)) < EXACT


@pytest.mark.parametrize('kernel, stride, padding, dilation, channels, wanted', [
    (3, 1, 1, 1, (4, 4), ADDED),
    (3, 2, 1, 1, (4, 4), ADDED[:-1]),
    (3, 1, 1, 1, (4, 6), ADDED[:-1]),
    (3, 1, 0, 1, (4, 4), ['1x1_kxk', '1x1_avg']),
    (3, 1, 2, 2, (4, 4), ADDED),
    (3, 1, 1, 2, (4, 4), ['1x1_kxk', '1x1_avg']),
    (4, 1, 2, 1, (4, 4), ['1x1_kxk', '1x1_avg']),
    ((3, 5), 1, (1, 2), 1, (4, 4), ADDED),
    ((3, 5), 1, (1, 1), 1, (4, 4), ['1x1_kxk', '1x1_avg', '1xk']),
    ((3, 4), 1, (1, 2), 1, (4, 4), ['1x1_kxk', '1x1_avg', '1xk']),
    ((4, 3), 1, (0, 1), 1, (4, 4), ['1x1_kxk', '1x1_avg', 'kx1']),
])
def test_what_fits_depends_on_the_shape_alone(kernel, stride, padding, dilation, channels, wanted):
    conv = nn.Conv2d(*channels, kernel, stride, padding, dilation)
    assert fitting(list(BRANCHES), Geometry.of(conv)) == wanted


def test_a_misfit_says_what_is_needed_and_what_is_there():
    reason = BRANCHES['1x1'].misfit(Geometry.of(nn.Conv2d(4, 4, 4, padding=1)))
    assert "odd kernel and 'same' padding" in reason and '(4, 4)' in reason
    assert '4 -> 6' in BRANCHES['residual'].misfit(Geometry.of(nn.Conv2d(4, 6, 3, padding=1)))


def test_a_depthwise_average_has_no_pointwise_convolution():
    depthwise = BRANCHES['1x1_avg'](Geometry.of(nn.Conv2d(4, 4, 3, groups=4)), nn.BatchNorm2d)
    assert [name for name, _ in depthwise.named_children()] == ['bn']
    grouped = BRANCHES['1x1_avg'](Geometry.of(nn.Conv2d(4, 8, 3, groups=4)), nn.BatchNorm2d)
    assert [name for name, _ in grouped.named_children()] == ['conv1', 'bn1', 'bn']


def test_spaces_are_those_of_table_1():
    assert resolve_space('repvgg') == ['kxk', '1x1', 'residual']
    assert resolve_space('dbb') == ['kxk', '1x1', '1x1_kxk', '1x1_avg']
    assert resolve_space('dyrep') == ['kxk', '1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1', 'residual']
    assert set(SPACES) == {'repvgg', 'dbb', 'dyrep'}


def test_a_list_is_put_in_order_with_the_original_in_front():
    assert resolve_space(['residual', '1x1']) == ['kxk', '1x1', 'residual']


@pytest.mark.parametrize('space', ['vgg', ['1x1', '3x3']])
def test_unknown_names_are_refused(space):
    with pytest.raises(ValueError, match="vgg|3x3"):
        resolve_space(space)


@given(convs(), seeds)
def test_geometry_resolves_padding_given_as_a_word(conv, seed):
    geometry = Geometry.of(conv)
    twin = nn.Conv2d(geometry.in_channels, geometry.out_channels, geometry.kernel_size, geometry.stride,
                     geometry.padding, geometry.dilation, geometry.groups, bias=conv.bias is not None).double()
    twin.load_state_dict(conv.state_dict())
    x = images_for(geometry, seed)
    assert torch.equal(twin(x), conv(x))


def test_one_sided_same_padding_is_refused():
    with pytest.raises(ValueError, match='one side'):
        Geometry.of(nn.Conv2d(2, 2, 4, padding='same'))
    assert Geometry.of(nn.Conv2d(2, 2, (2, 3), padding='same', dilation=(2, 1))).padding == (1, 1)
