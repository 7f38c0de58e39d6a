"""Ops that share one pass over the batches get the statistics that passes of their own would give them."""
import copy
from typing import Any, List

import pytest
import torch
from torch import nn

from mmdyrep.dynamics import Calibration, Inputs, NotReached, inputs
from mmdyrep.reparam import expand, remove
from tests.test_dynamics.small_network import SmallNetwork
from tests.test_dynamics.test_calibration import trained, uneven_batches
from tests.test_engine.test_skipping import Depth

# an op, the branches that it gets
GROWN = [('conv4', ['1x1', '1x1_kxk', '1x1_avg', 'residual']), ('conv1', ['1x1_kxk', '1x1_avg']),
         ('conv2', ['1x1', '1xk', 'kx1', '1x1_avg'])]
NESTED = [('conv2.branches.1x1_kxk.conv', ['1x1_avg', '1x1_kxk']), ('conv2', ['1xk']),
          ('conv2.branches.kxk.conv', ['1x1_avg', 'kx1']), ('conv1', ['1x1_avg'])]


class Counted:
    """Runs a network on a batch, and counts."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.number = net, 0

    def __call__(self, x: torch.Tensor) -> Any:
        self.number += 1
        return self.net(x)


def with_block() -> SmallNetwork:
    net = trained()
    expand(net, 'conv2', ['1x1', '1x1_kxk'], net.behind, gamma=0.3)
    for x in uneven_batches():
        net(x)
    return net


def frozen() -> SmallNetwork:
    net = with_block()
    for module in net.modules():
        module.training = module.training and not isinstance(module, nn.BatchNorm2d)
    return net


def grow(net: nn.Module, name: str, branches: List[str], measure: Any) -> None:
    expand(net, name, branches, net.behind, gamma=0.1, generator=torch.Generator().manual_seed(1), measure=measure)


def together(net: nn.Module, names: List[str], run: Any = None, batches: Any = None, **more: Any) -> Inputs:
    shared = Inputs(Calibration(net, run or net, batches or uneven_batches(), **more), net)
    shared.collect(names)
    return shared


def assert_equal(left: nn.Module, right: nn.Module) -> None:
    assert list(left.state_dict()) == list(right.state_dict())
    for (key, mine), theirs in zip(left.state_dict().items(), right.state_dict().values()):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13, msg=key)


@pytest.mark.parametrize('make, ops', [(trained, GROWN), (with_block, NESTED), (frozen, NESTED)],
                         ids=['outer', 'nested', 'frozen'])
def test_shared_and_separate_passes_agree(make: Any, ops: list) -> None:
    net = make()
    run, start = Counted(net), copy.deepcopy(net)
    shared = together(net, [name for name, _ in ops], run)
    for number, (name, branches) in enumerate(ops):
        grow(net, name, branches, shared.of(name))
        # the other blocks as they were at the pass
        alone, root = copy.deepcopy(start), name.split('.')[0]
        for other, others in ops[:number + 1]:
            if other.split('.')[0] == root:
                grow(alone, other, others, Calibration(alone, alone, uneven_batches()))
        assert_equal(net.get_submodule(root), alone.get_submodule(root))
    assert run.number == 4


def test_an_op_that_shrinks_and_the_one_nested_in_it() -> None:
    net = with_block()
    grow(net, 'conv2.branches.kxk.conv', ['1x1'], None)
    alone, run = copy.deepcopy(net), Counted(net)
    remove(net, 'conv2', ['1x1'], net.behind, together(net, ['conv2'], run).of('conv2'))
    remove(alone, 'conv2', ['1x1'], net.behind, Calibration(alone, alone, uneven_batches()))
    assert_equal(net, alone)
    assert run.number == 4


def test_an_op_that_nobody_has_named_gets_a_pass_when_it_is_asked_for() -> None:
    net = trained()
    alone, run = copy.deepcopy(net), Counted(net)
    grow(net, 'conv4', ['1x1'], together(net, ['conv1'], run).of('conv4'))
    grow(alone, 'conv4', ['1x1'], Calibration(alone, alone, uneven_batches()))
    assert_equal(net, alone)
    assert run.number == 8


def test_norms_are_measured_in_the_same_pass_in_the_mode_that_they_are_in() -> None:
    net = frozen()
    run, norms = Counted(net), [net.conv2.origin.bn, net.conv2.branches['1x1_kxk'].bn]
    found = Inputs(Calibration(net, run, uneven_batches()), net).collect(['conv1'], norms)
    for mine, theirs in zip(found, Calibration(net, net, uneven_batches())(norms, fixed=True)):
        torch.testing.assert_close(torch.stack(mine), torch.stack(theirs), rtol=1e-12, atol=0)
    assert run.number == 4


def test_a_pass_ends_at_the_last_op() -> None:
    net, ran = trained(), []
    for name, module in net.named_children():
        module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
    together(net, ['conv2', 'conv1'])
    assert ran == ['conv1', 'bn1', 'relu1'] * 4


@pytest.mark.parametrize('names, kept, number', [
    # there is no room for four batches of the largest maps, 6 x 14 x 14
    (['conv1', 'conv2', 'conv4'], ['conv1', 'conv4'], 4), (['conv2'], [], 1)])
def test_kept_is_no_more_than_training_keeps(monkeypatch: Any, names: list, kept: list, number: int) -> None:
    monkeypatch.setattr(inputs, 'FREE', 0)
    net, batches = trained(), [torch.randn(15, 1, 28, 28, dtype=torch.float64) for _ in range(4)]
    alone, run = copy.deepcopy(net), Counted(net)
    shared = together(net, names, run, batches)
    assert [name for name in names if name in shared._kept] == kept and run.number == number
    for name in names:
        twin = copy.deepcopy(alone)
        grow(twin, name, ['1x1_kxk'], Calibration(twin, twin, batches))
        mine = copy.deepcopy(alone)
        shared._root = shared._calibration.model = shared._calibration.run = mine
        grow(mine, name, ['1x1_kxk'], shared.of(name))
        assert_equal(mine, twin)


class Spoiling(SmallNetwork):
    """Writes into the input of its second convolution when that has been used."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(x)))
        x.zero_()
        return self.head(self.flat(self.pool(self.bn4(self.conv4(self.relu3(self.conv3(self.drop(y))))))))


def test_an_input_that_has_been_written_into_is_not_used() -> None:
    net = Spoiling().double().train()
    alone = copy.deepcopy(net)
    shared = together(net, ['conv2', 'conv4'])
    grow(net, 'conv2', ['1x1'], shared.of('conv2'))
    grow(alone, 'conv2', ['1x1'], Calibration(alone, alone, uneven_batches()))
    assert_equal(net, alone)


def test_a_hook_that_changes_the_input_changes_it_once() -> None:
    net = trained()
    net.conv2.register_forward_pre_hook(lambda module, args: (args[0] * 2 + 1, ))
    alone = copy.deepcopy(net)
    grow(net, 'conv2', ['1x1'], together(net, ['conv2']).of('conv2'))
    grow(alone, 'conv2', ['1x1'], Calibration(alone, alone, uneven_batches()))
    assert_equal(net, alone)


def test_mixed_precision_is_that_of_the_pass() -> None:
    net = SmallNetwork().train()
    batches = [batch.float() for batch in uneven_batches()]

    def run(x: torch.Tensor, model: Any = None) -> None:
        with torch.autocast('cpu', torch.bfloat16):
            (model or net)(x)

    alone, exact = copy.deepcopy(net), copy.deepcopy(net)
    grow(net, 'conv4', ['1x1'], together(net, ['conv4'], run, batches).of('conv4'))
    grow(alone, 'conv4', ['1x1'], Calibration(alone, lambda x: run(x, alone), batches))
    grow(exact, 'conv4', ['1x1'], Calibration(exact, exact, batches))
    assert_equal(net, alone)
    assert not torch.allclose(net.conv4.origin.bn.running_var, exact.conv4.origin.bn.running_var, rtol=1e-6)


def test_batches_that_skip_an_op_do_not_count_for_it() -> None:
    batches = [torch.randn(4, 3, 8, 8).double() for _ in range(3)]
    net = Depth([True, False, True]).double().train()
    expand(net, 'conv', ['1x1'], {'conv': 'norm'}, gamma=0.1)
    alone = copy.deepcopy(net)
    net.number = alone.number = 0
    found, = together(net, ['conv'], None, batches, part=net).of('conv')([net.conv.origin.bn])
    wanted, = Calibration(alone, alone, batches, alone)([alone.conv.origin.bn])
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-12, atol=0)
    never = Depth([False]).double().train()
    with pytest.raises(NotReached):
        together(never, ['conv'], None, batches, part=never).of('conv')([never.norm])


def test_nothing_is_left_behind() -> None:
    net = with_block()
    net.bn4.eval()
    modes, before = [module.training for module in net.modules()], copy.deepcopy(net.state_dict())
    rng = torch.random.get_rng_state()
    shared = together(net, ['conv1', 'conv2', 'conv4'])
    shared.of('conv2')([net.conv2.origin.bn])
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
