"""A block alone: what it computes, and that expand, remove, assign and fold keep or set that."""
import copy
from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from mmdyrep.reparam import Block, Statistics
from mmdyrep.reparam.block import TINY_GAMMA, restate
from mmdyrep.reparam.branches import BRANCHES
from mmdyrep.reparam.kernels import Kernel
from tests.convolutions import EXACT, choose, convolve, convs, error, images_for, scatter, seeds, use_batch_statistics

make_norm = partial(nn.BatchNorm2d, eps=1e-3)


def block_on(conv: nn.Conv2d, seed: int, depth: int = 1) -> Block:
    """A block with some of the branches that fit and scattered numbers, nested in both places if depth is 2."""
    block = Block(conv, make_norm, Statistics(torch.randn(conv.out_channels), torch.rand(conv.out_channels) + 0.1))
    with torch.no_grad():
        block.expand(choose(BRANCHES, block.geometry, seed), 0.5)
    if depth > 1:
        for branch in ('kxk', '1x1_kxk'):
            if branch in block.branches:
                place = block.branches[branch]
                place.conv = block_on(place.conv, seed + 1, depth - 1)
    return scatter(block, seed)


def conv3x3(channels: int = 4, **kwargs) -> nn.Conv2d:
    return scatter(nn.Conv2d(channels, channels, 3, padding=1, **kwargs).double(), 0)


@given(convs(), seeds, st.booleans(), st.booleans())
def test_a_new_block_computes_the_convolution(conv, seed, known, rescale):
    x = images_for(block_geometry(conv), seed)
    wanted, size = conv(x), conv.out_channels
    generator = torch.Generator().manual_seed(seed)
    behind = Statistics(torch.randn(size, generator=generator), torch.rand(size, generator=generator) + 0.1)
    block = Block(conv, make_norm, behind if known else None, rescale).eval()
    assert error(block(x), wanted) < EXACT
    expected = (behind.var.double() + 1e-3).sqrt() if known and rescale else torch.ones(size, dtype=torch.float64)
    assert error(block.scale, expected) < EXACT


def block_geometry(conv: nn.Conv2d):
    return Block(copy.deepcopy(conv), make_norm).geometry


def test_the_original_of_a_rescaled_block_starts_with_gamma_one():
    block = Block(conv3x3(), make_norm, Statistics(torch.zeros(4), torch.tensor([0.01, 1, 4, 100])))
    torch.testing.assert_close(block.origin.bn.weight.detach(), torch.ones(4, dtype=torch.float64))
    unscaled = Block(conv3x3(), make_norm, Statistics(torch.zeros(4), torch.tensor([0.01, 1, 4, 100])), False)
    assert unscaled.origin.bn.weight.max() > 9


@given(convs(), seeds, st.sampled_from([1, 2, 3]))
def test_eval_output_is_that_of_the_equivalent_kernel(conv, seed, depth):
    block = block_on(conv, seed, depth).eval()
    x = images_for(block.geometry, seed)
    assert error(block(x), convolve(x, block.kernel(), block.geometry)) < EXACT


@given(convs(), seeds, st.sampled_from([1, 2]))
def test_train_output_is_that_of_the_equivalent_kernel_at_the_statistics_of_the_batch(conv, seed, depth):
    block = block_on(conv, seed, depth)
    x = images_for(block.geometry, seed, batch=3)
    out = use_batch_statistics(block, x)
    assert error(out, convolve(x, block.kernel(), block.geometry)) < EXACT


@given(convs(), seeds, st.sampled_from([1, 2]), st.floats(1e-3, 2))
def test_expand_adds_what_is_missing_and_keeps_the_output(conv, seed, depth, gamma):
    block = block_on(conv, seed, depth).eval()
    missing = choose([name for name in BRANCHES if name not in block.branches], block.geometry, seed)
    x = images_for(block.geometry, seed)
    with torch.no_grad():
        before = block(x)
        block.expand(missing, gamma)
        assert error(block(x), before) < EXACT
    for name in missing:
        assert error(block.branches[name].bn.weight, torch.full_like(conv.weight[:, 0, 0, 0], gamma)) < 1e-6
        assert torch.all(block.branches[name].bn.bias == 0)


@given(convs(), seeds, st.sampled_from([1, 2]), st.data())
def test_remove_keeps_the_output_also_where_gamma_of_the_original_is_next_to_zero(conv, seed, depth, data):
    block = block_on(conv, seed, depth).eval()
    gamma = block.origin.bn.weight
    with torch.no_grad():
        for channel in range(len(gamma)):
            tiny = data.draw(st.sampled_from([None, 0.0, 1e-9, -1e-12, TINY_GAMMA / 2, 1e-300]))
            gamma[channel] = gamma[channel] if tiny is None else tiny
    x = images_for(block.geometry, seed)
    gone = choose(block.added, block.geometry, seed)
    with torch.no_grad():
        before = block(x)
        block.remove(gone)
        assert error(block(x), before) < EXACT
    assert not set(gone) & set(block.branches)


@pytest.mark.parametrize('tiny', [0.0, 1e-9, 1e-4])
def test_tiny_gammas_of_the_original_move_into_its_weight_alone(tiny):
    block = scatter(Block(conv3x3(), make_norm), 1).eval()
    block.origin.bn.weight.data[:2] = tiny
    before, kept = block.origin.conv.weight.detach().clone(), block.origin.bn.weight.detach().clone()
    kernel = block.kernel()
    block.absorb(Kernel(torch.zeros_like(kernel.weight), torch.zeros_like(kernel.bias)))
    assert torch.equal(block.origin.bn.weight[:2], torch.ones(2, dtype=torch.float64))
    assert torch.equal(block.origin.bn.weight[2:], kept[2:])
    assert torch.equal(block.origin.conv.weight[:2], before[:2] * tiny)
    assert torch.equal(block.origin.conv.weight[2:], before[2:])
    assert error(block.kernel().bias, kernel.bias) < EXACT


@given(convs(), seeds, st.sampled_from([1, 2, 3]))
def test_absorb_adds_a_kernel_and_assign_sets_one(conv, seed, depth):
    block = block_on(conv, seed, depth).eval()
    before = block.kernel()
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    extra = Kernel(draw(before.weight.shape), draw(before.bias.shape))
    block.absorb(extra)
    after = block.kernel()
    assert error(after.weight, before.weight + extra.weight) < EXACT
    assert error(after.bias, before.bias + extra.bias) < EXACT

    others = {name: copy.deepcopy(block.branches[name].state_dict()) for name in block.added}
    size = len(before.bias)
    behind = Statistics(draw(size), draw(size).exp())
    block.assign(extra, behind)
    assert error(block.kernel().weight, extra.weight) < EXACT
    assert error(block.kernel().bias, extra.bias) < EXACT
    assert error(block.scale, (behind.var + 1e-3).sqrt()) < EXACT
    assert all(torch.equal(value, block.branches[name].state_dict()[key])
               for name, state in others.items() for key, value in state.items())


@given(convs(), seeds, st.sampled_from([1, 2, 3]))
def test_fold_leaves_the_function_in_the_original_convolution(conv, seed, depth):
    had_bias = conv.bias is not None
    block = block_on(conv, seed, depth).eval()
    x = images_for(block.geometry, seed)
    wanted = block(x).detach()
    assert block.has_bias == had_bias and block.original_conv() is conv
    kernel = block.fold()
    assert (conv.bias is not None) == had_bias
    out = conv(x) if had_bias else conv(x) + kernel.bias.view(1, -1, 1, 1)
    assert error(out.detach(), wanted) < EXACT


@given(seeds, st.sampled_from([1e-5, 0.3]))
def test_restate_keeps_the_eval_output_of_a_norm(seed, eps):
    bn = scatter(nn.BatchNorm2d(4, eps=eps).double(), seed).eval()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    before = bn(x).detach()
    wanted = Statistics(torch.randn(4).double(), torch.rand(4).double() + 0.01)
    restate(bn, wanted)
    assert torch.equal(bn.running_mean, wanted.mean) and torch.equal(bn.running_var, wanted.var)
    assert error(bn(x).detach(), before) < EXACT


@given(st.permutations([name for name in BRANCHES if name != 'kxk']))
def test_the_order_of_branches_does_not_depend_on_when_they_came(names):
    block = Block(conv3x3(), make_norm)
    with torch.no_grad():
        for name in names:
            block.expand([name], 0.1)
    assert list(block.branches) == list(BRANCHES)
    at_once = Block(conv3x3(), make_norm)
    with torch.no_grad():
        at_once.expand(list(BRANCHES)[1:], 0.1)
    assert list(block.state_dict()) == list(at_once.state_dict())
    assert [name for name, _ in block.named_parameters()] == [name for name, _ in at_once.named_parameters()]


def test_weights_are_drawn_as_pytorch_draws_them_from_the_generator_alone():
    blocks = [Block(conv3x3(), make_norm) for _ in range(3)]

    def drawn(seed: int) -> Block:
        block = blocks.pop()
        with torch.no_grad():
            block.expand(list(BRANCHES)[1:], 0.1, torch.Generator().manual_seed(seed))
        return block

    state = torch.random.get_rng_state()
    one, same, other = drawn(3), drawn(3), drawn(4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters()))
    assert not torch.equal(one.branches['1x1'].conv.weight, other.branches['1x1'].conv.weight)
    for name, fan_in in (('1x1', 4), ('1x1_kxk', 36), ('1xk', 12)):
        weight = one.branches[name].conv.weight
        assert 0.7 * fan_in**-0.5 < weight.abs().max() <= fan_in**-0.5


def test_branches_take_dtype_and_frozenness_of_the_original():
    block = Block(nn.Conv2d(4, 4, 3, padding=1).half().requires_grad_(False), make_norm)
    with torch.no_grad():
        block.expand(list(BRANCHES)[1:], 0.1)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float16}
    assert block.scale.dtype == torch.float16
    assert not any(parameter.requires_grad for parameter in block.parameters())


def test_the_parameter_of_the_original_moves_into_the_block_and_out_again():
    conv = conv3x3(bias=False)
    weight = conv.weight
    block = Block(conv, make_norm)
    with torch.no_grad():
        block.expand(['1x1', '1x1_kxk'], 0.1)
        block.remove(['1x1'])
        block.fold()
    assert block.original_conv().weight is weight


def test_gradients_reach_every_branch_and_match_the_equivalent_convolution():
    block = block_on(conv3x3(), 5, depth=2).eval()
    x = images_for(block.geometry, 0).requires_grad_()
    grad = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    assert all(part.abs().max() > 0 for part in grad)
    twin = x.detach().clone().requires_grad_()
    convolve(twin, block.kernel(), block.geometry).square().sum().backward()
    assert error(grad[0], twin.grad) < EXACT


@pytest.mark.parametrize('mode', [True, False])
def test_a_new_block_is_in_the_mode_of_the_original(mode):
    block = Block(conv3x3().train(mode), make_norm)
    with torch.no_grad():
        block.expand(['1x1_kxk'], 0.1)
    assert {module.training for module in block.modules()} == {mode}
