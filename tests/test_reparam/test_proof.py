"""What is offered can be expanded exactly, however the network is written; looking leaves no trace."""
import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep import reparam
from mmdyrep.reparam.lookalike import lookalike
from mmdyrep.reparam.probe import tensors_in

from ..backbones import difference, unfriendly
from ..strange_networks import STRANGE

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGE = torch.zeros(1, 3, 16, 16)


# the strange pair is not to be told from the others
NONE_AT_ALL = ('norm by a switch', 'convolutions exchanged in the forward')


@torch.no_grad()
def outputs(model: nn.Module, x: torch.Tensor) -> tuple:
    model.eval()
    torch.manual_seed(0)
    return tuple(tensors_in(model(x)))


def trained(net: nn.Module) -> nn.Module:
    """In float64, as after a training: no norm is trivial, the first forward pass is done."""
    net = net.double()
    net.eval()
    net(X)
    return unfriendly(net)


@pytest.mark.parametrize('name', STRANGE)
def test_offered_ops_are_exact_and_the_others_have_a_reason(name):
    torch.manual_seed(0)
    case = STRANGE[name]
    net = case.make()
    found = reparam.examine(net, IMAGE.to(next(net.parameters())))
    assert set(found.ops) & {'a', 'c'} or name in NONE_AT_ALL, found.reasons
    assert ('b' in found.ops) == (not case.reason)
    if case.reason:
        assert re.search(case.reason, found.reasons['b']), found.reasons['b']
    for op in found.ops:
        model = trained(lookalike(net, keep_hooks=True))
        twin, before = lookalike(model, keep_hooks=True), outputs(model, X)
        geometry = reparam.Geometry.of(model.get_submodule(op))
        branches = reparam.fitting(reparam.BRANCHES, geometry)
        reparam.expand(model, op, branches, found.ops, gamma=1.0)
        assert difference(outputs(model, X), before) < 1e-9, op
        unfriendly(model.get_submodule(op), 3)
        before = outputs(model, X)
        reparam.fold(model, op, found.ops)
        assert difference(outputs(model, X), before) < 1e-9, op
        twin.load_state_dict(model.state_dict())
        assert difference(outputs(twin, X), before) < 1e-9, op


def traces(net: nn.Module) -> dict:
    """All that looking might change."""
    return {'state': {key: value for key, value in net.state_dict().items()
                      if not isinstance(value, nn.parameter.UninitializedTensorMixin)},
            'modes': [module.training for module in net.modules()],
            'modules': [(name, type(module)) for name, module in net.named_modules()],
            'attributes': [{key: (id(value), len(value) if isinstance(value, (list, dict)) else value)
                            for key, value in vars(module).items()
                            if key not in ('_parameters', '_buffers', '_modules')}
                           for module in net.modules() if not isinstance(module, torch.jit.ScriptModule)],
            'random': torch.get_rng_state()}


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one is other or bool(one == other)


@pytest.mark.parametrize('name', STRANGE)
def test_looking_leaves_no_trace(name):
    net = STRANGE[name].make().train()
    before = copy.deepcopy(traces(net)['state']), traces(net)
    reparam.examine(net, IMAGE.to(next(net.parameters())))
    after = traces(net)
    assert equal({**before[1], 'state': before[0]}, after)


def test_a_formula_that_is_wrong_leaves_no_op(monkeypatch):
    """The trial is seen to fail: with merging broken, nothing is offered."""
    net = STRANGE['norm and activation in one'].make()
    assert len(reparam.examine(net, IMAGE).ops) == 3
    right = reparam.kernels.fuse_bn

    def wrong(kernel, bn):
        merged = right(kernel, bn)
        return reparam.kernels.Kernel(merged.weight, merged.bias * 1.001)

    monkeypatch.setattr(reparam.kernels, 'fuse_bn', wrong)
    found = reparam.examine(net, IMAGE)
    assert not found.ops and all('is another' in reason for reason in found.reasons.values())


def test_user_hooks_are_not_called_by_looking():
    net, seen = STRANGE['norm and activation in one'].make(), []
    net.c.register_forward_hook(lambda *args: seen.append(args))
    net.register_forward_pre_hook(lambda *args: seen.append(args))
    assert 'a' in reparam.examine(net, IMAGE).ops and not seen


class Padded(nn.Module):
    """Runs only with the hook that somebody has put in front of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4 * 16 * 16, 2)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def test_a_network_that_needs_its_hooks_is_run_with_them():
    net = Padded()
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
        reparam.examine(net, IMAGE)
    net.body.register_forward_pre_hook(lambda module, args: (nn.functional.pad(args[0], (1, 1, 1, 1)),))
    assert reparam.examine(net, IMAGE).ops == {'body.0': 'body.1'}


def test_several_guilty_ops_are_named_and_the_rest_stays():
    torch.manual_seed(0)
    layers = []
    for index in range(12):
        layers += [nn.Conv2d(3, 3, 3, padding=1, bias=False),
                   STRANGE['activation in front, within the norm'].make().bn_b if index in (2, 7, 8) else
                   nn.BatchNorm2d(3), nn.Tanh()]
    for layer in layers:
        if isinstance(layer, _BatchNorm) and layer.num_features == 4:
            layer.__init__(3)
    found = reparam.examine(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
    assert list(found.reasons) == ['6', '21', '24'] and len(found.ops) == 9


def test_what_shows_only_in_the_end_is_found_by_halves():
    class Reading(nn.Module):
        """The weight of the third convolution is read in the end."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(module for _ in range(7) for module in (
                nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())))

        def forward(self, x):
            out = self.layers(x)
            return out + self.layers[6]._parameters['weight'].square().sum() if '_parameters' in vars(
                self.layers[6]) and 'weight' in self.layers[6]._parameters else out

    found = reparam.examine(Reading(), torch.zeros(1, 3, 8, 8))
    assert list(found.reasons) == ['layers.6'] and 'output of the network' in found.reasons['layers.6']
    assert len(found.ops) == 6


def test_a_network_of_float32_code_is_tried_in_float32():
    class Single(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.bad, self.act_bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), STRANGE[
                'activation in front, within the norm'].make().bn_b

        def forward(self, x):
            assert x.dtype == torch.float32
            return self.act_bn(self.bad(self.bn(self.conv(x)))) @ torch.ones(16, 16, dtype=torch.float32)

    found = reparam.examine(Single(), IMAGE)
    assert list(found.ops) == ['conv'] and 'is another' in found.reasons['bad']


def test_layer_scales_and_gammas_of_zero_do_not_hide_what_is_wrong():
    class Scaled(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
            self.gamma = nn.Parameter(torch.full((3, 1, 1), 1e-6))
            nn.init.zeros_(self.bn.weight)

        def forward(self, x):
            y = self.conv(x)
            # the compiled code is not watched
            return x + self.gamma * (self.bn(y) + torch.jit.script(_gate)(y))

    found = reparam.examine(Scaled(), IMAGE)
    assert not found.ops and 'is another' in found.reasons['conv']


def _gate(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(x)


def test_a_network_without_values_is_surveyed_like_one_with_values():
    with torch.device('meta'):
        net = STRANGE['activation in front, within the norm'].make()
    found = reparam.examine(net, IMAGE.to('meta'))
    assert found == reparam.examine(STRANGE['activation in front, within the norm'].make(), IMAGE)._replace(
        reasons=found.reasons) and list(found.reasons) == ['b']
    assert all(tensor.is_meta for tensor in net.state_dict().values())
