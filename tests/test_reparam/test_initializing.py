"""What new branches start from; whatever it is, the function of the op is kept."""
import copy

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from mmdyrep.reparam import BRANCHES, Geometry, blocks_of, expand, fitting, remove, start_of, surgery
from mmdyrep.reparam.kernels import embed
from tests.convolutions import EXACT, batch_measure, choose, convs, error, images_for, network, seeds

from .test_surgery import PLACES, behind, train_output

STARTS = ['default', 'normal', 'split', dict(type='default', identity=True), dict(type='split', alpha=1, noise=0)]


def grow(net: nn.Module, norms: dict, seed: int, start, measure=None) -> list:
    """Expand the op, then those nested in it, two levels deep, each by some of what fits."""
    grown = []
    for place, name in enumerate(PLACES):
        parent = name.rpartition('.branches.')[0]
        if parent and (parent not in grown or name.split('.')[-2] not in net.get_submodule(parent).branches):
            continue
        branches = choose(BRANCHES, surgery.geometry_of(net.get_submodule(name)), seed + place)
        generator = torch.Generator().manual_seed(seed)
        if branches and expand(net, name, branches, norms, gamma=0.3, measure=measure, start=start,
                               generator=generator):
            grown.append(name)
    return grown


def expanded(conv: nn.Conv2d, seed: int, start, measured: bool = True, **settings) -> nn.Sequential:
    """A network whose convolution has all branches that fit."""
    net = network(conv, seed)
    x = images_for(Geometry.of(conv), seed, batch=4)
    expand(net, 'conv', fitting(list(BRANCHES), Geometry.of(conv)), behind(net), gamma=0.01, start=start,
           measure=batch_measure(net.train(), x) if measured else None, **settings)
    return net


def conv3x3(channels: int = 8, **settings) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, 3, padding=1, bias=False, **settings).double()


# ---------------------------------------------------------------------- the function is kept

@given(convs(), seeds, st.booleans(), st.sampled_from(STARTS))
def test_the_eval_output_is_kept_whatever_branches_start_from(conv, seed, own_bias, setting):
    net = network(conv, seed).eval()
    norms = behind(net, own_bias)
    x = images_for(Geometry.of(conv), seed)
    with torch.no_grad():
        before = net(x)
        for name in reversed(grow(net, norms, seed, start_of(setting))):
            assert error(net(x), before) < EXACT
            remove(net, name, net.get_submodule(name).added[:1], norms)
            assert error(net(x), before) < EXACT


@given(convs(), seeds, st.booleans(), st.sampled_from(STARTS))
def test_the_train_output_is_kept_on_the_batch_that_is_calibrated_on(conv, seed, own_bias, setting):
    net = network(conv, seed).train()
    norms = behind(net, own_bias)
    x = images_for(Geometry.of(conv), seed, batch=4)
    measure = batch_measure(net, x)
    before = train_output(net, x)
    grow(net, norms, seed, start_of(setting), measure)
    assert error(train_output(net, x), before) < 1e-8
    inside = [module for module in net.conv.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, (mean, var) in zip(inside, measure(inside)):
        assert error(norm.running_mean, mean) < 1e-8 and error(norm.running_var, var) < 1e-8


# ---------------------------------------------------------------------- split

def part_of(name: str, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """What a branch is to take of a kernel, element by element."""
    part = torch.zeros_like(weight)
    channels, width, height, columns = weight.shape
    row, column = height // 2, columns // 2
    for o in range(channels):
        for i in range(width):
            if name == '1x1':
                part[o, i, row, column] = weight[o, i, row, column]
            elif name == '1xk':
                part[o, i, row] = weight[o, i, row]
            elif name == 'kx1':
                part[o, i, :, column] = weight[o, i, :, column]
            elif name == '1x1_avg':
                part[o, i] = weight[o, i].mean()
            elif name == '1x1_kxk':
                part[o, i] = weight[o, i]
            elif name == 'residual' and i == o % width:
                part[o, i, row, column] = weight[o, i, row, column]
    return part


@given(convs(), seeds, st.sampled_from([0.25, 0.6]), st.booleans())
def test_a_branch_is_alpha_times_its_part_of_the_kernel_and_the_original_what_is_left(conv, seed, alpha, measured):
    weight = conv.weight.detach().clone()
    block = expanded(conv, seed, start_of(dict(type='split', alpha=alpha, noise=0)), measured).conv
    scale = block.scale.double()
    given_away = torch.zeros_like(weight)
    for name in block.added:
        got = block.branches[name].kernel().scaled(scale)
        wanted = alpha * part_of(name, weight, conv.groups)
        assert (got.weight - wanted).abs().max() < EXACT * weight.abs().max()
        # its mean has been taken out of it by the last norm and put in again
        assert got.bias.abs().max() < 1e-8
        given_away += wanted
    left = block.origin.kernel().scaled(scale).weight
    assert (left - (weight - given_away)).abs().max() < EXACT * weight.abs().max()


def test_gammas_are_as_large_as_the_part_is_and_statistics_are_those_of_the_batch():
    """On white noise a part of the kernel deviates as the square root of its share in the sum of squares."""
    conv = conv3x3(32)
    net = nn.Sequential()
    net.add_module('conv', conv)
    net.add_module('bn', nn.BatchNorm2d(32).double())
    torch.manual_seed(1)
    x = torch.randn(8, 32, 32, 32, dtype=torch.float64) * 40  # whatever the size of the values
    measure = batch_measure(net.train(), x)
    weight = conv.weight.detach().clone()
    twin = copy.deepcopy(net)
    names = fitting(list(BRANCHES), Geometry.of(conv))
    expand(net, 'conv', names, {'conv': 'bn'}, gamma=0.01, measure=measure, start=start_of('split'))
    # without statistics of branches, those of the norm behind are all that is known
    for name, value in zip(('running_mean', 'running_var'), measure([net.bn])[0]):
        getattr(twin.bn, name).copy_(value)
    expand(twin, 'conv', names, {'conv': 'bn'}, gamma=0.01, start=start_of(dict(type='split', noise=0)))
    for name in names:
        part = part_of(name, weight, 1)
        share = 0.25 * (part.square().sum((1, 2, 3)) / weight.square().sum((1, 2, 3))).sqrt()
        for block in (net.conv, twin.conv):
            gamma = block.branches[name].bn.weight.detach().abs()
            assert (gamma.mean() / share.mean() - 1).abs() < 0.1, name


def test_noise_is_relative_to_each_output_channel_and_a_projection_without_noise_is_exact():
    conv = conv3x3(16, groups=2)
    with torch.no_grad():
        conv.weight[3] = 0
        conv.weight[4] *= 1000
    clean = expanded(copy.deepcopy(conv), 0, start_of(dict(type='split', noise=0))).conv
    noisy = expanded(copy.deepcopy(conv), 0, start_of(dict(type='split', noise=0.1))).conv
    for name in ('1x1', '1xk', 'kx1', '1x1_kxk'):
        exact = clean.branches[name].conv.weight
        moved = (noisy.branches[name].conv.weight - exact).square().mean((1, 2, 3)).sqrt()
        size = exact.square().mean((1, 2, 3)).sqrt()
        assert moved[3] == 0 and torch.isfinite(noisy.kernel().weight).all()
        ratios = moved[size > 0] / size[size > 0]
        assert ratios.min() > 0.02 and ratios.max() < 0.25 and (ratios.mean() - 0.1).abs() < 0.03, name
    assert error(clean.branches['1x1'].conv.weight, conv.weight[:, :, 1:2, 1:2]) < EXACT
    assert error(clean.branches['1xk'].conv.weight, conv.weight[:, :, 1:2]) < EXACT
    assert not torch.equal(noisy.branches['1x1_kxk'].conv1.weight, clean.branches['1x1_kxk'].conv1.weight)


def test_what_is_split_off_learns_at_the_pace_of_the_op():
    """A branch behind a gamma of 0.01 gets gradients of a hundredth."""
    pace = {}
    for setting in ('default', 'split'):
        net = expanded(conv3x3(), 0, start_of(setting)).train()
        x = images_for(net.conv.geometry, 5, batch=8)
        (net(x) * torch.randn(net(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
         ).sum().backward()
        weights = {name: net.conv.branches[name].conv.weight for name in ('kxk', '1x1_kxk', '1xk')}
        turn = {name: float(weight.grad.norm() * weight.detach().norm()) for name, weight in weights.items()}
        pace[setting] = {name: turn[name] / turn['kxk'] for name in turn}
    assert all(pace['default'][name] < 0.03 for name in ('1x1_kxk', '1xk')), pace
    assert all(pace['split'][name] > 0.1 for name in ('1x1_kxk', '1xk')), pace


# ---------------------------------------------------------------------- drawn

@pytest.mark.parametrize(('setting', 'variance'), [('default', lambda shape: 1 / (3 * shape[1:].numel())),
                                                   ('normal', lambda shape: 2 / (shape[0] * shape[2:].numel()))])
def test_variance_of_what_is_drawn(setting, variance):
    conv = nn.Conv2d(32, 64, 3, padding=1, groups=2).double()
    block = expanded(conv, 0, start_of(setting)).conv
    for name in ('1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1'):
        for part in ('conv1', 'conv'):
            if hasattr(block.branches[name], part):
                weight = getattr(block.branches[name], part).weight.detach()
                assert float(weight.var() / variance(weight.shape)) == pytest.approx(1, abs=0.15), (name, part)
                assert (weight.abs().max() < 1.9 * weight.std()) == (setting == 'default')  # uniform, or not


@pytest.mark.parametrize('setting', STARTS[:4])
def test_a_generator_decides_alone(setting):
    weights = []
    for seed, outside in ((1, 1), (1, 2), (2, 2)):
        net = network(conv3x3(), 0)
        torch.manual_seed(outside)
        expected = copy.deepcopy(torch.get_rng_state())
        expand(net, 'conv', ['1x1', '1x1_kxk'], behind(net), gamma=0.01, start=start_of(setting),
               generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), expected)
        weights.append(net.conv.branches['1x1_kxk'].conv.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize('setting', [dict(type='default', identity=True), dict(type='normal', identity=True)])
@pytest.mark.parametrize('groups', [1, 4])
def test_1x1_kxk_may_start_as_the_identity(setting, groups):
    block, other = (expanded(conv3x3(groups=groups), 0, start_of(start)).conv for start in (setting, 'default'))
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    assert torch.equal(block.branches['1x1_kxk'].conv1(x), x)
    assert not torch.equal(other.branches['1x1_kxk'].conv1(x), x)
    if groups == 1:
        assert block.branches['1x1_avg'].conv1.weight.count_nonzero() == 64


# ---------------------------------------------------------------------- anew, after a network's own initialization

NESTED = {'conv': ['1x1', '1x1_kxk', '1x1_avg', 'residual'], PLACES[1]: ['1xk', '1x1_kxk'], PLACES[2]: ['kx1'],
          f'{PLACES[1]}.branches.1x1_kxk.conv': ['1x1']}


@pytest.mark.parametrize('setting', STARTS)
def test_restarted_branches_are_as_new_ones(setting):
    net = network(conv3x3(), 0)
    start = start_of(setting)
    for name, branches in NESTED.items():
        expand(net, name, branches, behind(net), gamma=0.01, start=start, rescale=False)
    for module in net.conv.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    drawn = {name: module.weight.detach().clone() for name, module in net.conv.named_modules()
             if isinstance(module, nn.Conv2d)}
    with torch.no_grad():
        start.restart(net.conv, 0.5)
    blocks = blocks_of(net)
    assert set(blocks) == set(NESTED)
    if 'split' in str(setting):
        original = drawn['branches.kxk.conv.branches.kxk.conv']
        kernel = net.conv.kernel()
        assert error(kernel.weight, original) < EXACT and kernel.bias.abs().max() < EXACT
        alpha, noise = start.alpha, start.noise
        got = embed(net.conv.branches['1x1'].kernel().scaled(net.conv.scale), 3, 3).weight
        assert error(got, alpha * part_of('1x1', original, 1)) < (0.5 if noise else EXACT)
        inner = net.conv.branches['1x1_kxk'].conv
        got = inner.branches['kx1'].kernel().scaled(inner.scale).weight
        assert error(got, alpha * part_of('kx1', inner.kernel().weight, 1)) < (0.5 if noise else EXACT)
        return
    for block in blocks.values():
        assert all(torch.all(block.branches[name].bn.weight == 0.5) for name in block.added)
    identity = isinstance(setting, dict)
    for name, module in net.conv.named_modules():
        if name in drawn and name.endswith('conv1') and '1x1_kxk' in name and identity:
            assert torch.equal(module.weight, torch.eye(8, dtype=torch.float64).view(8, 8, 1, 1))
        elif name in drawn:
            # the original is the network's; with `default` all are
            redrawn = setting == 'normal' and not name == 'branches.kxk.conv.branches.kxk.conv'
            assert torch.equal(module.weight, drawn[name]) != redrawn, name


# ---------------------------------------------------------------------- what is refused

@pytest.mark.parametrize(('setting', 'message'), [
    ('kaiming', "unknown initialization of branches 'kaiming'; there are .*'split'"), ({}, 'unknown .* None'),
    (dict(type='split', beta=1), r"takes no settings \['beta'\]; it has \['alpha', 'noise'\]"),
    (dict(type='normal', alpha=1), r"takes no settings \['alpha'\]; it has \['identity'\]"),
    (dict(type='split', alpha=0), 'alpha of a split must be a number up to 1, positive, got 0'),
    (dict(type='split', alpha=1.5), 'alpha'), (dict(type='split', noise=-0.1), 'noise .* at least 0'),
    (dict(type='split', noise=True), 'noise'), (dict(type='split', alpha='1'), 'alpha')])
def test_settings_that_can_not_be(setting, message):
    with pytest.raises(ValueError, match=message):
        start_of(setting)
