"""Branches that did not run are dropped: the function stays, to the last digits, and what is left trains on."""
import copy

import pytest
import torch

from mmdyrep import DyRepBackbone
from mmdyrep.models.dropping import drop
from mmdyrep.reparam import Block, blocks_of
from mmdyrep.reparam.gating import Gate, set_gates
from tests.backbones import SMALL, images, unfriendly
from tests.test_dynamics.small_network import SmallNetwork

OP = 'layer1.0.conv1'


def static(keep_norm=False, backbone=SMALL):
    net = DyRepBackbone(copy.deepcopy(backbone), static=True, keep_norm=keep_norm)
    net = unfriendly(net).double()
    if not keep_norm:
        net.train()  # norms behind are left out anew, their values go into the blocks
    for block in blocks_of(net).values():
        block.scale.copy_(torch.linspace(0.5, 1.5, len(block.scale)))
    return net


def outputs(net, x, training):
    with torch.no_grad():
        return copy.deepcopy(net).train(training)(x)[-1]


@pytest.mark.parametrize('keep_norm', [True, False])
def test_what_did_not_run_is_dropped_and_the_function_stays(keep_norm):
    net, x = static(keep_norm), images(batch=4).double()
    gone = {OP: ['1x1', '1x1_kxk', 'residual'], 'layer2.0.conv1': ['1x1_avg'], 'conv1': ['1xk']}
    set_gates(blocks_of(net), {name: Gate(frozenset(names), frozenset(names)) for name, names in gone.items()})
    before = [outputs(net, x, training) for training in (False, True)]
    kept = {key: value.clone() for key, value in net.state_dict().items()}
    for name, names in gone.items():
        drop(net, name, names)
    assert not any(block.gate for name, block in blocks_of(net).items())
    for was, training in zip(before, (False, True)):
        assert (outputs(net, x, training) - was).abs().max() < 1e-12 * was.abs().max()
    assert net.structure['ops'][OP] == ['kxk', '1x1_avg', '1xk', 'kx1']
    # nothing that stays has changed
    assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())


def all_of(net, name):
    return net.get_submodule(name).added


def test_an_op_without_branches_is_plain_again_its_own_norm_behind_it_in_train_mode_too():
    net, x = static(), images(batch=4).double()
    net.train()
    block, names = net.get_submodule(OP), all_of(net, OP)
    set_gates({OP: block}, {OP: Gate(frozenset(names), frozenset(names))})
    before = [outputs(net, x, training) for training in (False, True)]
    trained = copy.deepcopy(net).train()
    trained(x)
    gamma, weight = block.origin.bn.weight, block.origin.conv.weight
    calls = []
    block.register_forward_hook(lambda *_: calls.append(1))
    drop(net, OP, names)
    conv, norm = net.get_submodule(OP), net.layer1[0].bn1
    assert not isinstance(conv, Block) and conv.weight is weight and norm.weight is gamma
    assert norm.weight.requires_grad and 'forward' not in vars(norm)
    for was, training in zip(before, (False, True)):
        assert (outputs(net, x, training) - was).abs().max() < 1e-12 * was.abs().max()
    calls.clear()
    net.train()(x)
    assert calls == [1]
    for key in ('running_mean', 'running_var', 'num_batches_tracked'):
        assert torch.allclose(getattr(norm, key), getattr(trained.get_submodule(OP).origin.bn, key), rtol=1e-12)
    # the norms of other blocks are still left out
    assert 'forward' in vars(net.layer1[0].bn2)


def test_with_the_norm_behind_kept_it_is_fused_by_the_running_statistics():
    net, x = static(keep_norm=True), images(batch=4).double()
    names = all_of(net, OP)
    set_gates(blocks_of(net), {OP: Gate(frozenset(names), frozenset(names))})
    before, train = outputs(net, x, False), outputs(net, x, True)
    drop(net, OP, names)
    assert not isinstance(net.get_submodule(OP), Block)
    assert (outputs(net, x, False) - before).abs().max() < 1e-12 * before.abs().max()
    # in train mode the norm behind takes out what differs, but for eps
    assert (outputs(net, x, True) - train).abs().max() < 1e-3 * train.abs().max()


@pytest.mark.parametrize('keep_norm', [True, False])
def test_a_convolution_with_a_bias_and_no_norm_behind(keep_norm):
    net = static(keep_norm, SmallNetwork())
    x = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    names = all_of(net, 'conv3')
    set_gates(blocks_of(net), {'conv3': Gate(frozenset(names), frozenset(names))})
    with torch.no_grad():
        net.eval()
        before = net(x)
        drop(net, 'conv3', names)
        assert net.conv3.bias is not None and not isinstance(net.conv3, Block)
        assert (net(x) - before).abs().max() < 1e-12 * before.abs().max()


def test_a_convolution_with_a_bias_and_a_norm_behind_that_is_left_out():
    inner = SmallNetwork()
    inner.conv2.bias = torch.nn.Parameter(torch.randn(8))
    net, x = static(backbone=inner), torch.randn(4, 1, 28, 28, dtype=torch.float64)
    names = all_of(net, 'conv2')
    set_gates(blocks_of(net), {'conv2': Gate(frozenset(names), frozenset(names))})
    with torch.no_grad():
        before = [copy.deepcopy(net).train(mode)(x) for mode in (False, True)]
        drop(net, 'conv2', names)
        after = [copy.deepcopy(net).train(mode)(x) for mode in (False, True)]
    assert net.conv2.bias is not None and 'forward' not in vars(net.bn2)
    for was, now in zip(before, after):
        assert (now - was).abs().max() < 1e-12 * was.abs().max()
