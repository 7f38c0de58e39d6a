"""Code that copies a module, or makes another of its class, meets the class made on the fly."""
import copy

import pytest
import torch
from torch import nn

from mmdyrep import DyRepBackbone
from tests.convolutions import scatter

from ..backbones import SMALL, difference, images, outputs, wrapped


def layers() -> nn.Sequential:
    return scatter(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                                 nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).double(), 0).eval()


def test_a_replica_as_nn_data_parallel_makes_one_computes_the_same():
    net = wrapped(SMALL)
    net.expand('layer1.0.conv2')
    replica = net._replicate_for_data_parallel()
    assert type(replica) is type(net) and replica is not net
    # nn.DataParallel fills in copies of the children, here themselves
    for name, child in net.named_children():
        setattr(replica, name, child)
    assert difference(outputs(replica, images()), outputs(net, images())) == 0


@pytest.mark.parametrize('part', [slice(0, 3), slice(3, None)])
def test_slices_of_a_sequential_are_plain_ones_with_the_same_parts(part):
    net = DyRepBackbone(layers())
    net.expand('0')
    assert type(net[part]) is nn.Sequential
    assert list(net[part]) == list(net)[part]


def test_a_graph_module_is_expanded_copied_and_fused():
    x = images(12)
    net = DyRepBackbone(torch.fx.symbolic_trace(layers())).eval()
    wanted = outputs(net, x)
    for name in ('0', '3', '3.branches.kxk.conv'):
        assert net.expand(name)
    assert difference(outputs(net, x), wanted) < 1e-9
    twin = copy.deepcopy(net)
    assert twin.structure == net.structure and twin.get_submodule('3') is not net.get_submodule('3')
    assert twin.candidates() == net.candidates()
    assert difference(outputs(twin, x), wanted) < 1e-9
    twin.remove('0', ['1x1'])
    assert '1x1' in net.structure['ops']['0']
    plain = net.to_plain()
    assert isinstance(plain, torch.fx.GraphModule) and list(plain.state_dict()) == list(layers().state_dict())
    assert difference(outputs(plain, x), wanted) < 1e-9


@pytest.mark.parametrize('change, message', [
    (lambda net: setattr(net[3], 'weight', nn.Parameter(torch.zeros(4, 4, 3, 3).double())), None),
    (lambda net: setattr(net[3], 'weight', net.other.weight), 'has come to share a parameter with other'),
    (lambda net: setattr(net[3], 'forward', net.other.forward), 'has a forward of its own'),
])
def test_what_becomes_of_an_op_after_the_survey_is_seen(change, message):
    net = DyRepBackbone(layers())
    net.add_module('other', nn.Conv2d(4, 4, 3, padding=1).double())
    net._dyrep.survey = DyRepBackbone(layers()).survey
    change(net)
    if message is None:
        assert '3' in net.candidates() and net.expand('3')
        return
    assert message in net.skipped()['3'] and '3' not in net.candidates()
    keys = list(net.state_dict())
    for use in (lambda: net.expand('3'), lambda: net.load_structure({'version': 1, 'ops': {'3': ['kxk', '1x1']}})):
        with pytest.raises(ValueError, match=message):
            use()
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize('norm, message', [
    (nn.GroupNorm(2, 4), '4, the batch norm behind 3, has become GroupNorm'),
    (nn.BatchNorm2d(4, track_running_stats=False), '4, the batch norm behind 3, keeps no running statistics any more')])
def test_what_becomes_of_the_norm_behind_after_the_survey_is_seen(norm, message):
    net = DyRepBackbone(layers())
    assert '3' in net.candidates()
    net[4] = norm.double()
    before = outputs(net, images(12))
    with pytest.raises(RuntimeError, match=message):
        net.expand('3')
    assert not net.structure['ops'] and difference(outputs(net, images(12)), before) == 0
