"""Blocks of which not all branches run."""
import copy

import pytest
import torch

from mmdyrep.reparam import blocks_of, expand, fused_copy
from mmdyrep.reparam.gating import Gate, set_gates, slope
from tests.backbones import unfriendly
from tests.test_dynamics.small_network import SmallNetwork

ADDED = ['1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1', 'residual']
TRAINING, EVALUATION = frozenset({'1x1', 'kx1', '1x1_avg'}), frozenset({'1x1_kxk', 'residual', '1xk'})


def network():
    net = SmallNetwork().double()
    for name in ('conv3', 'conv4'):
        expand(net, name, ADDED if name == 'conv4' else ADDED[:-1], net.behind, gamma=1.0, rescale=False)
    return unfriendly(net).double()


def output_of(block, x, closed):
    """Sum over the branches that run, called one by one, those that don't left out."""
    total = sum(branch(x) for name, branch in copy.deepcopy(block).branches.items() if name not in closed)
    return total * block.scale.view(1, -1, 1, 1)


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_only_branches_that_a_gate_leaves_run(training, grad):
    net = network().train(training)
    block, x = net.conv4, torch.randn(4, 8, 7, 7, dtype=torch.float64)
    set_gates(blocks_of(net), {'conv4': Gate(TRAINING, EVALUATION)})
    closed = TRAINING if training else EVALUATION
    wanted, everything = output_of(block, x, closed), output_of(block, x, ())
    statistics = {name: branch.bn.running_mean.clone() for name, branch in block.branches.items()}
    calls = []
    for name, branch in block.branches.items():
        branch.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.set_grad_enabled(grad):
        out = block(x)
    assert (out - wanted).abs().max() < 1e-12 < 1e-2 < (everything - wanted).abs().max()
    assert calls == [name for name in block.branches if name not in closed]
    for name, branch in block.branches.items():
        assert torch.equal(branch.bn.running_mean, statistics[name]) == (not training or name in closed)
    if grad:
        out.square().sum().backward()
        for name, branch in block.branches.items():
            assert (slope(branch.bn) is None) == (name in closed)
            assert all((parameter.grad is None) == (name in closed) for parameter in branch.parameters())


def test_a_gated_network_is_fused_as_it_runs_in_evaluation_and_opened_runs_whole():
    net, x = network().eval(), torch.randn(3, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        whole = [net(x) for _ in range(3)][-1]  # kernels are kept from the second call on
        set_gates(blocks_of(net), {'conv4': Gate(evaluation=EVALUATION), 'conv3': Gate(evaluation=frozenset({'1x1'}))})
        gated = net(x)
        assert (gated - whole).abs().max() > 1e-3
        assert (fused_copy(net, net.behind)(x) - gated).abs().max() < 1e-12 * gated.abs().max()
        assert (copy.deepcopy(net)(x) - gated).abs().max() == 0
        set_gates(blocks_of(net), {})
        assert (net(x) - whole).abs().max() == 0
        assert (fused_copy(net, net.behind)(x) - whole).abs().max() < 1e-12 * whole.abs().max()
    assert not any('gate' in key for key in net.state_dict())


def test_slope_is_the_derivative_by_a_factor_on_the_branch():
    net, x = network().train(), torch.randn(4, 8, 7, 7, dtype=torch.float64)
    weight = torch.randn(4, 8, 7, 7, dtype=torch.float64)

    def loss(factor):
        block = copy.deepcopy(net.conv4)
        handle = block.branches['1x1_kxk'].register_forward_hook(lambda module, inputs, output: output * factor)
        value = (block(x) * weight).sin().sum()
        handle.remove()
        return value, block

    value, block = loss(1.0)
    value.backward()
    step = 1e-5
    with torch.no_grad():
        difference = (loss(1 + step)[0] - loss(1 - step)[0]) / (2 * step)
    assert slope(block.branches['1x1_kxk'].bn).item() == pytest.approx(difference.item(), rel=1e-7)
