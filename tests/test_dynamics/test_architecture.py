"""Architecture parameters: masks, noise and the straight-through gradient, against computations of their own."""
import copy
import math
from typing import List

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdyrep.dynamics.architecture import Architecture, branch_number, greatest, logistic
from mmdyrep.reparam import blocks_of, expand
from mmdyrep.reparam.gating import Gate, set_gates, slope
from tests.images import fashion

from .small_network import SmallNetwork

BRANCHES = ['1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1']


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Module:
    net = SmallNetwork().double()
    for name in ('conv2', 'conv3', 'conv4'):
        expand(net, name, BRANCHES, net.behind, gamma=1.0, rescale=False, generator=generator(4))
    for number, block in enumerate(blocks_of(net).values()):
        for branch in block.branches.values():
            nn.init.uniform_(branch.bn.weight, 0.5, 1.5)
            nn.init.normal_(branch.bn.bias)
        block.scale.fill_(0.7 + number)
    return net.train()


def keys_of(net: nn.Module) -> List:
    return [(name, branch) for name, block in blocks_of(net).items() for branch in block.added]


def test_noise_is_the_difference_of_two_gumbel_draws():
    uniform = torch.rand(2, 5, generator=generator(3), dtype=torch.float64).numpy()
    gumbel = [-np.log(-np.log(row)) for row in uniform]
    assert np.abs(logistic(5, generator(3)).numpy() - (gumbel[0] - gumbel[1])).max() < 1e-13
    many = logistic(200_000, generator(5)).numpy()
    # logistic: variance pi^2 / 3, distribution 1 / (1 + e^-x)
    assert abs(many.mean()) < 0.02 and abs(many.var() / (math.pi ** 2 / 3) - 1) < 0.02
    for point in (-2.0, -0.5, 0.0, 1.0, 3.0):
        assert abs((many < point).mean() - 1 / (1 + math.exp(-point))) < 5e-3


def test_mask_has_the_greatest_ranks_of_the_whole_network():
    search = Architecture([(f'op{i // 5}', f'branch{i % 5}') for i in range(40)], 0.34)
    assert search.count == 13
    with torch.no_grad():
        search.alpha.copy_(torch.randn(40, generator=generator(1), dtype=torch.float64))
    draw = search.draw(generator(2))
    ranks = search.alpha.detach().numpy() + logistic(40, generator(2)).numpy()
    assert np.array_equal(draw.ranks.numpy(), ranks)
    assert set(np.flatnonzero(draw.mask.numpy())) == set(np.argsort(-ranks)[:13])
    assert set(np.flatnonzero(search.draw().mask.numpy())) == set(np.argsort(-search.alpha.detach().numpy())[:13])
    assert search.chosen(draw.mask) == [search.keys[i] for i in np.flatnonzero(draw.mask.numpy())]
    values = [value for _, value in search.ranking()]
    assert values == sorted(values, reverse=True)
    assert {key for key, _ in search.ranking()[:13]} == set(search.chosen(search.draw().mask))


def test_with_alphas_of_zero_each_branch_is_drawn_as_often():
    search = Architecture([('op', str(i)) for i in range(12)], 4)
    times = sum(search.draw(generator(seed)).mask.double() for seed in range(6000)) / 6000
    # 6000 draws of probability 1/3: a deviation of 0.006
    assert (times - 1 / 3).abs().max() < 0.03


def test_equal_alphas_are_ordered_once_by_the_seed():
    keys = [('op', str(i)) for i in range(20)]
    assert Architecture(keys, 3).draw().mask.nonzero().flatten().tolist() == [0, 1, 2]
    orders = [Architecture(keys, 3, generator=generator(seed)) for seed in (1, 1, 2)]
    masks = [search.draw().mask.nonzero().flatten().tolist() for search in orders]
    assert masks[0] == masks[1] != masks[2]
    ranks = torch.tensor([1.0, 3.0, 1.0, 1.0])
    assert greatest(ranks, 2, torch.tensor([3, 2, 1, 0])).tolist() == [False, True, False, True]


def reference_gradient(net: nn.Module, keys: List, draw, x, labels) -> torch.Tensor:
    """Gradient of alpha by autograd through w = mask + sigmoid(rank) - stop_gradient(sigmoid(rank))."""
    net = copy.deepcopy(net)
    set_gates(blocks_of(net), {})
    ranks = draw.ranks.clone().requires_grad_()
    sigmoid = torch.sigmoid(ranks)
    weights = draw.mask.double() + sigmoid - sigmoid.detach()
    for (name, branch), weight in zip(keys, weights):
        net.get_submodule(name).branches[branch].register_forward_hook(
            lambda module, inputs, output, weight=weight: output * weight)
    loss = F.cross_entropy(net(x), labels)
    return torch.autograd.grad(loss, ranks)[0] * draw.mask, loss.detach()


def test_gradient_is_that_of_the_straight_through_gate_and_adam_steps_by_it():
    net, (x, labels) = network(), fashion(16, dtype=torch.float64)
    keys = keys_of(net)
    search = Architecture(keys, 0.34, lr=0.05, betas=(0.5, 0.999), weight_decay=5e-4)
    alpha = nn.Parameter(torch.zeros(len(keys), dtype=torch.float64))
    adam = torch.optim.Adam([alpha], lr=0.05, betas=(0.5, 0.999), weight_decay=5e-4)
    for step in range(6):
        draw = search.draw(generator(step))
        assert torch.allclose(draw.ranks, alpha.detach() + logistic(len(keys), generator(step)), atol=1e-9)
        running = search.chosen(draw.mask)
        gates = {name: Gate(frozenset(branch for other, branch in keys if other == name
                                      and (other, branch) not in running)) for name in blocks_of(net)}
        wanted, wanted_loss = reference_gradient(net, keys, draw, x, labels)
        set_gates(blocks_of(net), gates)
        net.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        assert abs(loss.item() - wanted_loss.item()) < 1e-12
        loss.backward()
        slopes = [slope(net.get_submodule(name).branches[branch].bn) for name, branch in running]
        if step == 3:
            # still multiplied by a loss scale
            search.step([value * 512 for value in slopes], draw, 512.0)
        else:
            search.step(slopes, draw)
        alpha.grad = wanted
        assert wanted.abs().max() > 1e-4 and (wanted != 0).sum() == search.count
        adam.step()
        assert (search.alpha - alpha).abs().max() < 1e-9
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    assert len(set(alpha.tolist())) > 10


def test_branches_without_a_gradient_are_passed_over_and_infinite_ones_teach_nothing():
    search = Architecture([('op', str(i)) for i in range(4)], 2, lr=0.1, weight_decay=0.0)
    draw = search.draw()
    assert draw.mask.tolist() == [True, True, False, False]
    search.step([None, torch.tensor(1.0)], draw)
    assert search.alpha.tolist()[0] == 0 and search.alpha.tolist()[2:] == [0, 0]
    # Adam's first step is lr, against the gradient
    assert search.alpha[1].item() == pytest.approx(-0.1, rel=1e-6)
    before = search.state_dict()
    search.step([torch.tensor(math.inf), torch.tensor(1.0)], draw)
    search.step([torch.tensor(math.nan), torch.tensor(1.0)], draw)
    assert torch.equal(search.alpha, before['alpha'])
    assert search.optimizer.state_dict()['state'][0]['step'] == 1


def test_a_search_goes_on_from_its_state_to_the_bit():
    keys = [('op', str(i)) for i in range(9)]

    def steps(search: Architecture, numbers: range) -> None:
        for number in numbers:
            draw = search.draw(generator(number))
            search.step(list(torch.randn(search.count, generator=generator(100 + number))), draw)

    straight, first = (Architecture(keys, 3, lr=0.1, generator=generator(7)) for _ in range(2))
    steps(straight, range(8))
    steps(first, range(5))
    state = copy.deepcopy(first.state_dict())
    # the order of equal alphas is that of the state
    second = Architecture(keys, 3, lr=0.1)
    second.load_state_dict(state)
    steps(second, range(5, 8))
    assert torch.equal(second.alpha, straight.alpha)
    assert second.ranking() == straight.ranking()
    first, second = Architecture(keys, 3, generator=generator(7)), Architecture(keys, 3)
    assert first.ranking() != second.ranking()
    second.load_state_dict(first.state_dict())
    assert first.ranking() == second.ranking()
    for other, message in ((Architecture(keys[:-1], 3), r"9 branches, this one 8; \('op', '8'\)"),
                           (Architecture(keys, 4), 'keeps 3 branches, this one 4')):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)


@pytest.mark.parametrize(('constraint', 'number', 'count'), [(0.34, 110, 37), (0.34, 45, 15), (7, 45, 7), (1.0, 5, 5)])
def test_branch_number_constraint(constraint, number, count):
    assert branch_number(constraint, number) == count


@pytest.mark.parametrize(('constraint', 'number'), [(0.34, 2), (6, 5), (0, 5)])
def test_a_constraint_that_leaves_none_or_asks_for_more_is_refused(constraint, number):
    with pytest.raises(ValueError, match=f'constraint={constraint} makes .* of the {number} branches'):
        branch_number(constraint, number)
