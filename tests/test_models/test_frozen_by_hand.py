"""Norms that were frozen by hand, not by the backbone's own settings, stay as they are when the structure changes."""
import pytest
import torch
from torch import nn

from mmdyrep.models import DyRepBackbone

from ..backbones import SMALL, block_norms, difference, images, wrapped

OP, OTHER, OPEN = 'layer1.0.conv2', 'layer2.0.conv1', 'layer3.0.conv2'


def state(net: DyRepBackbone) -> tuple:
    return ({module: module.training for module in net.modules()},
            {parameter: parameter.requires_grad for parameter in net.parameters()})


def assert_kept(net: DyRepBackbone, before: tuple) -> None:
    modes, grads = before
    assert all(module.training == modes[module] for module in net.modules() if module in modes)
    assert all(parameter.requires_grad == grads[parameter] for parameter in net.parameters() if parameter in grads)


@pytest.fixture
def net():
    net = wrapped(SMALL)
    net.expand(OTHER, ['1x1', '1x1_kxk'])
    net.train()
    for name in (OP, OTHER):
        net.norm_behind(name).eval()
        net.norm_behind(name).requires_grad_(False)
    # in a block, one norm alone
    net.get_submodule(f'{OTHER}.branches.1x1.bn').train().requires_grad_(False)
    net.get_submodule(f'{OTHER}.branches.kxk.bn').eval()
    return net


def test_expand_remove_and_load_structure_keep_modes_and_what_is_trained(net):
    before = state(net)
    for change in (lambda: net.expand(OP), lambda: net.expand(f'{OP}.branches.kxk.conv', ['1x1']),
                   lambda: net.expand(OTHER), lambda: net.expand(OPEN), lambda: net.remove(OTHER, ['1x1_avg']),
                   lambda: net.remove(OPEN, ['1x1']), lambda: net.load_structure({'version': 1, 'ops': {
                       OP: ['kxk', '1xk'], OTHER: ['kxk', '1x1', '1x1_kxk'], 'conv1': ['kxk', '1x1']}})):
        change()
        assert_kept(net, before)
        # new ones work as the norm behind their op, or as the original's
        assert not any(norm.training for norm in block_norms(net, OP)) or OP not in net.structure['ops']
        assert not net.get_submodule(f'{OTHER}.branches.kxk.bn').training
    assert all(norm.training for norm in block_norms(net, 'conv1'))
    net.load_structure({'version': 1, 'ops': {}})
    assert_kept(net, before)


def test_training_goes_on_where_it_was_with_a_norm_that_is_frozen_by_hand():
    net = wrapped(SMALL).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = images()
    before = tuple(out.detach() for out in net(x))
    net.expand(OP)
    net.expand(OPEN, ['1x1', 'residual'])
    assert difference(tuple(out.detach() for out in net(x)), before) < 1e-9
    net.remove(OP, net.get_submodule(OP).added)
    assert difference(tuple(out.detach() for out in net(x)), before) < 1e-9
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))


@torch.no_grad()
def test_a_network_in_eval_mode_stays_there():
    net = wrapped(SMALL)
    net.expand(OP)
    net.load_structure({'version': 1, 'ops': {OPEN: ['kxk', '1x1']}})
    assert not any(module.training for module in net.modules())
