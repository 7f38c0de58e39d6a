"""Rep and Dep in a network keep its function: in eval mode always, in train mode on the batch of the statistics."""
import copy
import pickle

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from mmdyrep.reparam import (
    BRANCHES,
    Geometry,
    describe,
    expand,
    fold,
    fold_all,
    fused_copy,
    norm_behind,
    remove,
    surgery,
)
from tests.convolutions import EXACT, batch_measure, choose, convs, error, images_for, network, scatter, seeds

NESTED = ('conv.branches.kxk.conv', 'conv.branches.1x1_kxk.conv')
# deepest last
PLACES = ('conv', *NESTED, *(f'{outer}{inner[4:]}' for outer in NESTED for inner in NESTED))


def behind(net: nn.Sequential, own_bias: bool = False) -> dict:
    return {'conv': None if own_bias and net.conv.bias is not None else 'bn'}


def grow(net: nn.Module, norms: dict, seed: int, measure=None) -> list:
    """Expand the op, then those nested in it, two levels deep, each by some of what fits."""
    grown = []
    for place, name in enumerate(PLACES):
        parent = name.rpartition('.branches.')[0]
        if parent and (parent not in grown or name.split('.')[-2] not in net.get_submodule(parent).branches):
            continue
        geometry = surgery.geometry_of(net.get_submodule(name))
        branches = choose(BRANCHES, geometry, seed + place)
        if branches and expand(net, name, branches, norms, gamma=0.3, measure=measure):
            grown.append(name)
    return grown


def train_output(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What train mode computes on a batch; statistics are left alone."""
    twin = copy.deepcopy(net).train()
    with torch.no_grad():
        return twin(x)


@given(convs(), seeds, st.booleans())
def test_rep_and_dep_keep_the_eval_output_whatever_the_numbers(conv, seed, own_bias):
    net = network(conv, seed).eval()
    norms = behind(net, own_bias)
    x = images_for(Geometry.of(conv), seed)
    with torch.no_grad():
        before = net(x)
        grown = grow(net, norms, seed)
        assert error(net(x), before) < EXACT
        scatter(net, seed + 1)
        before = net(x)
        for name in reversed(grown):
            added = net.get_submodule(name).added
            for branch in (added[:1], added[1:]):
                if branch:
                    remove(net, name, branch, norms)
                    assert error(net(x), before) < EXACT
    assert type(net.conv) is nn.Conv2d and net.conv is conv


@given(convs(), seeds, st.booleans())
def test_rep_and_dep_keep_the_train_output_of_a_batch_they_are_calibrated_on(conv, seed, own_bias):
    """Mean and variance in every norm are then those that train mode uses, so nothing moves at all."""
    net = network(conv, seed).train()
    norms = behind(net, own_bias)
    x = images_for(Geometry.of(conv), seed, batch=4)
    measure = batch_measure(net, x)
    before = train_output(net, x)
    grown = grow(net, norms, seed, measure)
    assert error(train_output(net, x), before) < 1e-8
    inside = [module for module in net.conv.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, (mean, var) in zip(inside, measure(inside)):
        # a wrong mean in all branches would not show behind the next norm
        assert error(norm.running_mean, mean) < 1e-8 and error(norm.running_var, var) < 1e-8
    for name in reversed(grown):
        for branch in net.get_submodule(name).added:
            remove(net, name, [branch], norms, measure)
            assert error(train_output(net, x), before) < 1e-8


@given(convs(), seeds)
def test_dep_of_a_block_with_blocks_in_it_calibrates_the_deepest_first(conv, seed):
    """Statistics of an outer norm are right only when those of the norms in front of it are."""
    net = network(conv, seed).train()
    norms = behind(net)
    x = images_for(Geometry.of(conv), seed, batch=4)
    measure = batch_measure(net, x)
    fits = choose(BRANCHES, Geometry.of(conv), seed)
    expand(net, 'conv', fits, norms, gamma=0.5, measure=measure)
    expand(net, NESTED[0], fits, norms, gamma=0.5, measure=measure)
    expand(net, PLACES[3], fits, norms, gamma=0.5, measure=measure)
    before = train_output(net, x)
    # gammas that training has changed: only these, the statistics stay those of the batch
    for name in fits:
        net.conv.branches[name].bn.weight.data.mul_(3)
    before = train_output(net, x)
    if len(fits) > 1:
        remove(net, 'conv', fits[:1], norms, measure)
        assert error(train_output(net, x), before) < 1e-8
        expand(net, 'conv', fits[:1], norms, gamma=0.5, measure=measure)
        assert error(train_output(net, x), before) < 1e-8


@given(convs(), seeds)
def test_scale_is_the_deviation_of_the_output_and_stays(conv, seed):
    net = network(conv, seed)
    fits = choose(BRANCHES, Geometry.of(conv), seed)
    expand(net, 'conv', fits[:1], behind(net), gamma=0.1)
    wanted = (net.bn.running_var + net.bn.eps).sqrt()
    assert error(net.conv.scale, wanted) < EXACT
    net.bn.running_var.mul_(3)
    expand(net, 'conv', fits, behind(net), gamma=0.1)
    assert error(net.conv.scale, wanted) < EXACT


def test_without_rescaling_or_a_norm_behind_the_scale_is_one():
    for rescale, norms in ((False, {'conv': 'bn'}), (True, {'conv': None})):
        net = network(nn.Conv2d(4, 4, 3, padding=1).double(), 0)
        expand(net, 'conv', ['1x1'], norms, gamma=1, rescale=rescale)
        assert torch.all(net.conv.scale == 1)


@given(convs(), seeds, st.booleans())
def test_the_last_branch_gone_leaves_the_plain_network(conv, seed, own_bias):
    net = network(conv, seed).eval()
    plain_keys, parameter = list(net.state_dict()), conv.weight
    norms = behind(net, own_bias)
    x = images_for(Geometry.of(conv), seed)
    grow(net, norms, seed)
    scatter(net, seed)
    with torch.no_grad():
        before = net(x)
        remove(net, 'conv', net.conv.added, norms)
        assert error(net(x), before) < EXACT
    assert list(net.state_dict()) == plain_keys
    assert net.conv is conv and net.conv.weight is parameter


@given(convs(), seeds, st.booleans())
def test_fusing_gives_the_plain_network_and_the_copy_leaves_the_augmented_one_alone(conv, seed, own_bias):
    plain = network(copy.deepcopy(conv), seed).eval()
    net = network(conv, seed).eval()
    norms = behind(net, own_bias)
    x = images_for(Geometry.of(conv), seed)
    grow(net, norms, seed)
    scatter(net, seed)
    with torch.no_grad():
        before, state = net(x), copy.deepcopy(net.state_dict())
        fused = fused_copy(net, norms)
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        plain.load_state_dict(fused.state_dict(), strict=True)
        assert error(plain(x), before) < EXACT
        fold_all(net, norms)
        assert error(net(x), before) < EXACT
        fold_all(net, norms)
        assert error(net(x), before) < EXACT


def test_folding_a_nested_block_puts_its_bias_into_the_norm_of_its_branch():
    net = network(nn.Conv2d(4, 4, 3, padding=1).double(), 0).eval()
    norms = behind(net)
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    expand(net, 'conv', ['1x1', '1x1_kxk'], norms, gamma=0.5)
    for name in NESTED:
        expand(net, name, ['1x1_avg'], norms, gamma=0.5)
    scatter(net, 1)
    with torch.no_grad():
        before, mean = net(x), net.bn.running_mean.clone()
        for name in NESTED:
            fold(net, name, norms)
            assert error(net(x), before) < EXACT
    assert torch.equal(net.bn.running_mean, mean)
    assert list(describe(net)['ops']) == ['conv']


def test_the_norm_behind_a_nested_op_is_that_of_its_branch():
    net = network(nn.Conv2d(4, 4, 3, padding=1).double(), 0)
    expand(net, 'conv', ['1x1_kxk'], behind(net), gamma=0.5)
    assert norm_behind(net, 'conv', behind(net)) is net.bn
    assert norm_behind(net, 'conv', {'conv': None}) is None
    for name, branch in zip(NESTED, ('kxk', '1x1_kxk')):
        assert norm_behind(net, name, behind(net)) is net.conv.branches[branch].bn


def test_branches_that_are_there_are_left_alone():
    net = network(nn.Conv2d(4, 4, 3, padding=1).double(), 0)
    assert expand(net, 'conv', ['1x1', 'kxk'], behind(net), gamma=0.5) == ['1x1']
    state = copy.deepcopy(net.state_dict())
    assert expand(net, 'conv', ['1x1'], behind(net), gamma=0.7) == []
    assert expand(net, 'conv', ['kxk'], behind(net), gamma=0.7) == []
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert expand(net, 'conv', ['1xk', '1x1'], behind(net), gamma=0.7) == ['1xk']
    assert torch.equal(net.conv.branches['1x1'].conv.weight, state['conv.branches.1x1.conv.weight'])


def test_norms_of_branches_are_like_the_one_behind():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.SyncBatchNorm(4, eps=0.01, momentum=0.03))
    expand(net, '0', ['1x1_kxk'], {'0': '1'}, gamma=0.1)
    norms = [module for module in net[0].modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 3
    assert {(type(norm), norm.eps, norm.momentum) for norm in norms} == {(nn.SyncBatchNorm, 0.01, 0.03)}


def test_branches_added_after_a_conversion_of_norms_are_of_the_new_kind():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, eps=0.01, momentum=0.03))
    expand(net, '0', ['1x1'], {'0': '1'}, gamma=0.1)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    expand(net, '0', ['1xk'], {'0': '1'}, gamma=0.1)
    norm = net[0].branches['1xk'].bn
    assert (type(norm), norm.eps, norm.momentum) == (nn.SyncBatchNorm, 0.01, 0.03)


@pytest.mark.parametrize('frozen', [True, False])
def test_norms_of_a_block_follow_the_mode_of_the_one_behind(frozen):
    net = network(nn.Conv2d(4, 4, 3, padding=1).double(), 0).train()
    net.bn.train(not frozen)
    norms = behind(net)
    expand(net, 'conv', ['1x1', '1x1_kxk'], norms, gamma=0.3)
    expand(net, NESTED[0], ['1x1_avg'], norms, gamma=0.3)
    expand(net, 'conv', ['1xk'], norms, gamma=0.3)
    modes = {module.training for module in net.conv.modules() if isinstance(module, nn.BatchNorm2d)}
    assert modes == {not frozen}


def test_frozen_statistics_make_rep_exact_in_training_and_stay_as_they_are():
    net = network(nn.Conv2d(4, 4, 3, padding=1).double(), 0).train()
    net.bn.eval()
    x = torch.randn(4, 4, 6, 7, dtype=torch.float64)
    before = net(x).detach()
    measure = batch_measure(net, x)
    grown = grow(net, behind(net), 3, measure)
    statistics = {key: value.clone() for key, value in net.named_buffers()}
    out = net(x)
    assert len(grown) > 2 and error(out.detach(), before) < EXACT
    assert all(torch.equal(value, statistics[key]) for key, value in net.named_buffers())
    out.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.conv.parameters())


def test_a_network_with_blocks_can_be_copied_and_pickled():
    net = network(nn.Conv2d(4, 4, 3, padding=1).double(), 0).eval()
    grow(net, behind(net), 3)
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), net(x))
        expand(twin, 'conv', ['1x1', '1xk', 'kx1'], behind(net), gamma=0.1)
        assert error(twin(x).detach(), net(x).detach()) < EXACT


def test_originals_are_the_convolutions_of_the_plain_network():
    net = network(nn.Conv2d(4, 4, 3, padding=1).double(), 0)
    conv = net.conv
    assert surgery.originals(net) == {}
    grow(net, behind(net), 3)
    assert surgery.originals(net) == {'conv': conv}
