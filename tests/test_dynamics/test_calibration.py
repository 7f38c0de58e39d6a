"""Statistics on real images against a direct computation; nothing else of the network or the process changes."""
import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from mmdyrep.dynamics import Calibration, drift, eval_output
from mmdyrep.dynamics.calibration import batch_statistics
from mmdyrep.reparam import expand
from tests.convolutions import error
from tests.images import fashion
from tests.test_dynamics.small_network import SmallNetwork

NORMS = ('bn1', 'bn2', 'bn4')


def uneven_batches() -> list:
    """Batches of 7, 32, 1 and 20 images."""
    bounds = [0, 7, 39, 40, 60]
    return [fashion(end - start, start)[0].double() for start, end in zip(bounds, bounds[1:])]


def trained(dropout: float = 0.0) -> SmallNetwork:
    """A network whose statistics are not the initial ones."""
    net = SmallNetwork(dropout=dropout).double().train()
    for x in uneven_batches():
        net(x)
    return net


def direct(net: nn.Module, batches: list, names=NORMS) -> dict:
    """Mean over the batches of mean and unbiased variance of each norm's input, the network in train mode."""
    net, found = copy.deepcopy(net), {name: [] for name in names}
    for name in names:
        net.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: found[name].append(inputs[0].detach().numpy()))
    for x in batches:
        net(x)
    return {name: (np.mean([x.mean((0, 2, 3)) for x in inputs], 0),
                   np.mean([x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1).var(1, ddof=1) for x in inputs], 0))
            for name, inputs in found.items()}


def assert_equal(measured: list, wanted: dict) -> None:
    assert len(measured) == len(wanted)
    for statistics, (mean, var) in zip(measured, wanted.values()):
        assert statistics.mean.dtype == statistics.var.dtype == torch.float64
        np.testing.assert_allclose(statistics.mean, mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(statistics.var, var, rtol=1e-9)


@pytest.mark.parametrize('names', [NORMS, ('bn2',), ('bn4', 'bn1')])
def test_statistics_are_the_mean_over_uneven_batches_in_the_order_asked_for(names):
    net, batches = trained(), uneven_batches()
    measured = Calibration(net, net, batches)([net.get_submodule(name) for name in names])
    assert_equal(measured, direct(net, batches, names))


def test_statistics_follow_dropout_as_training_draws_it():
    net, batches = trained(dropout=0.5), uneven_batches()
    torch.manual_seed(5)
    wanted = direct(net, batches)
    torch.manual_seed(5)
    assert_equal(Calibration(net, net, batches)([net.bn1, net.bn2, net.bn4]), wanted)


def test_a_frozen_norm_is_measured_in_train_mode_and_one_in_front_stays_frozen():
    net, batches = trained(), uneven_batches()
    net.bn1.eval()
    net.bn2.eval()
    twin = copy.deepcopy(net)
    twin.bn2.train()
    measured = Calibration(net, net, batches)([net.bn2, net.bn4])
    assert_equal(measured, direct(twin, batches, ('bn2', 'bn4')))
    assert not net.bn1.training and not net.bn2.training and net.bn4.training


def test_norms_in_a_block_are_measured():
    net, batches = trained(), uneven_batches()
    expand(net, 'conv2', ['1x1', '1x1_kxk'], net.behind, gamma=0.1)
    names = ['conv2.branches.kxk.bn', 'conv2.branches.1x1_kxk.bn1', 'conv2.branches.1x1_kxk.bn']
    measured = Calibration(net, net, batches)([net.get_submodule(name) for name in names])
    assert_equal(measured, direct(net, batches, names))


class Failure(Exception):
    pass


@pytest.mark.parametrize('fail', [False, True])
def test_statistics_modes_and_random_states_are_put_back_also_when_the_forward_fails(fail):
    net, batches = trained(dropout=0.5), uneven_batches()
    net.bn4.eval()
    state = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    calls = []

    def run(x):
        random.random(), np.random.rand(), torch.rand(3)
        calls.append(len(x))
        if fail and len(calls) == 3:
            net.bn1(net.conv1(x))
            raise Failure
        return net(x)

    states = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    calibration = Calibration(net, run, batches)
    if fail:
        with pytest.raises(Failure):
            calibration([net.bn1, net.bn4])
    else:
        calibration([net.bn1, net.bn4])
    assert calls == [7, 32, 1, 20][:3 if fail else 4]
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.random.get_rng_state(), states[2])
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_the_network_runs_only_as_far_as_the_last_norm_asked_for():
    net, batches, ran = trained(), uneven_batches(), []
    for name, module in net.named_children():
        module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
    Calibration(net, net, batches)([net.bn2, net.bn1])
    assert ran == ['conv1', 'bn1', 'relu1', 'conv2'] * len(batches)


def test_no_graph_is_kept():
    net = trained()
    seen = []
    net.bn1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].requires_grad))
    statistics, = Calibration(net, net, uneven_batches()[:1])([net.bn1])
    assert seen == [False] and not statistics.mean.requires_grad


def test_a_norm_that_is_not_reached_is_an_error():
    net = trained()
    with pytest.raises(RuntimeError, match='not reached'):
        Calibration(net, net, uneven_batches())([net.bn1, nn.BatchNorm2d(4)])


def test_calibration_needs_a_batch():
    with pytest.raises(ValueError, match='at least one batch'):
        Calibration(nn.Identity(), nn.Identity(), [])


@pytest.mark.parametrize('dtype, shape', [
    (torch.float64, (3, 4, 5, 6)), (torch.float32, (3, 4)), (torch.float16, (8, 4, 40, 40)),
    (torch.bfloat16, (3, 4, 5)), (torch.float64, (1, 4, 1, 1))])
def test_statistics_of_one_map(dtype, shape):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1).to(dtype)
    mean, var = batch_statistics(x)
    flat = np.moveaxis(x.double().numpy(), 1, 0).reshape(4, -1)
    assert mean.dtype == var.dtype == torch.float64
    np.testing.assert_allclose(mean, flat.mean(1), rtol=1e-5)
    np.testing.assert_allclose(var, flat.var(1, ddof=1) if flat.shape[1] > 1 else np.zeros(4), rtol=1e-5)


def test_statistics_in_a_running_norm_come_out_the_same():
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    norm = nn.BatchNorm2d(4, momentum=1.0).double()
    norm(x)
    mean, var = batch_statistics(x)
    assert error(norm.running_mean, mean) < 1e-12 and error(norm.running_var, var) < 1e-12


class Detector(nn.Module):
    """A backbone behind a preprocessing with a norm of its own, in front of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.backbone, self.head = nn.BatchNorm2d(1), SmallNetwork(dropout=0.5), nn.Linear(10, 2)

    def forward(self, x):
        return self.head(self.backbone(self.pre(x)))


def test_eval_output_is_that_of_the_part_in_eval_mode_and_changes_nothing():
    net = Detector().double().train()
    x = uneven_batches()[0]
    twin = copy.deepcopy(net)
    twin.backbone.eval()
    wanted = twin.backbone(twin.pre(x)).detach()
    net.backbone.bn1.eval()
    state, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    heads = []
    net.head.register_forward_hook(lambda *_: heads.append(1))
    rng = torch.random.get_rng_state()
    found, = eval_output(net, net.backbone, net, x)
    assert torch.equal(found, wanted) and not heads
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert not net.backbone._forward_hooks


@pytest.mark.parametrize('output', [
    lambda a, b: [a, b], lambda a, b: (a, (b, )), lambda a, b: {'x': a, 'y': [b, None]}])
def test_all_tensors_of_an_output_are_found(output):
    class Two(nn.Module):
        def forward(self, x):
            return output(x, x + 1)

    part = Two()
    found = eval_output(part, part, part, torch.zeros(2))
    assert [tensor.tolist() for tensor in found] == [[0, 0], [1, 1]]


def test_drift_is_the_largest_difference_over_the_largest_value_of_any_output():
    before = [torch.tensor([1.0, -4.0]), torch.tensor([10.0, 0.0])]
    after = [torch.tensor([1.0, -4.2]), torch.tensor([10.1, 0.2])]
    assert drift(before, after) == pytest.approx(0.05)
    assert drift(before, before) == 0
    assert drift([torch.zeros(2)], [torch.tensor([0.0, 0.5])]) == pytest.approx(0.5)
    for place in (0, 1):
        broken = [tensor.clone() for tensor in after]
        broken[place][0] = float('nan')
        assert drift(before, broken) != drift(before, broken)
