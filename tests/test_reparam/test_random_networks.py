"""Expanded, nested, partly cut, saved, reloaded, fused: random networks keep their function all the way."""
import random
from collections import OrderedDict

import pytest
import torch

from mmdyrep.reparam import BRANCHES, fitting, surgery
from tests.convolutions import error, scatter
from tests.random_networks import RandomNetwork

DyRepBackbone = pytest.importorskip('mmdyrep.models', reason='the wrapper needs mmengine').DyRepBackbone

CASES = 120
LIMIT = 1e-9


@pytest.fixture(scope='module')
def worst(request):
    """Worst relative error of each step, shown at the end."""
    found = {}
    yield found
    parts = ', '.join(f'{step} {value:.1e}' for step, value in found.items())
    with request.config.pluginmanager.getplugin('capturemanager').global_and_fixture_disabled():
        print(f'\nworst relative error: {parts}')


def some(draw: random.Random, names: list) -> list:
    return draw.sample(names, draw.randint(1, len(names)))


def grow(net, draw: random.Random) -> None:
    """Expand most ops, then what lies in them, by random branches."""
    for chance in (0.8, 0.5):
        for name in net.candidates():
            if draw.random() < chance:
                fits = fitting(list(BRANCHES), surgery.geometry_of(net.get_submodule(name)))
                net.expand(name, some(draw, fits))


def cut(net, draw: random.Random) -> None:
    """Remove random branches of most blocks, deepest first; some blocks go with their last branch."""
    for name in reversed(list(net.structure['ops'])):
        if draw.random() < 0.6:
            net.remove(name, some(draw, net.get_submodule(name).added))


@pytest.mark.parametrize('case', range(CASES))
def test_a_random_network_keeps_its_function_from_rep_to_the_fused_checkpoint(case, tmp_path, worst):
    draw = random.Random(case)
    inner = RandomNetwork(case, numbers=1)
    plain_keys = list(inner.state_dict())
    net = DyRepBackbone(inner, input_shape=inner.input_shape, gamma_init=0.1).eval()
    x = net.images(case)

    @torch.no_grad()
    def check(step: str, model, wanted) -> None:
        found = error(model(x), wanted)
        worst[step] = max(worst.get(step, 0.0), found)
        assert found < LIMIT

    with torch.no_grad():
        wanted = net(x)
    assert wanted.std() > 0
    grow(net, draw)
    check('Rep', net, wanted)

    # as if trained: all numbers of the network change
    scatter(net, case + 2)
    with torch.no_grad():
        wanted = net(x)
    cut(net, draw)
    check('Dep', net, wanted)
    grow(net, draw)
    check('Rep after training', net, wanted)

    torch.save(net.state_dict(), tmp_path / 'augmented.pth')
    fresh = DyRepBackbone(RandomNetwork(case, numbers=3), input_shape=inner.input_shape).eval()
    fresh.load_state_dict(torch.load(tmp_path / 'augmented.pth', weights_only=False), strict=True)
    assert fresh.structure == net.structure and list(fresh.state_dict()) == list(net.state_dict())
    check('reloaded', fresh, wanted)

    fused = fresh.to_plain()
    assert type(fused) is RandomNetwork and list(fused.state_dict()) == plain_keys
    assert fresh.structure == net.structure
    check('fused', fused, wanted)
    twin = RandomNetwork(case, numbers=4)
    twin.load_state_dict(fused.state_dict(), strict=True)
    check('plain', twin, wanted)


def test_the_cases_cover_what_convolutions_can_be():
    convs = [conv for case in range(CASES) for conv in RandomNetwork(case, 1).convs]
    assert {size for conv in convs for size in conv.kernel_size} == set(range(2, 8))
    assert {conv.dilation for conv in convs} >= {(1, 1), (2, 2), (1, 3)}
    assert {conv.stride for conv in convs} >= {(1, 1), (2, 2), (1, 2)}
    assert any(conv.groups not in (1, conv.in_channels) for conv in convs)
    assert any(1 < conv.groups == conv.in_channels for conv in convs)
    assert any(conv.kernel_size[0] != conv.kernel_size[1] for conv in convs)
    nets = [RandomNetwork(case, 1) for case in range(CASES)]
    assert any(any(net.shortcut) for net in nets)
    assert any(isinstance(norm, torch.nn.Identity) for net in nets for norm in net.norms)
    assert any(conv.bias is not None and isinstance(norm, torch.nn.BatchNorm2d)
               for net in nets for conv, norm in zip(net.convs, net.norms))


class Fork(torch.nn.Module):
    """Two convolutions with norms in a container called ``branches``, their keys like those of a block."""

    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.Sequential
        self.branches = torch.nn.ModuleDict({name: layer(OrderedDict(
            conv=torch.nn.Conv2d(3, 3, 3, padding=1, bias=False), bn=torch.nn.BatchNorm2d(3)))
            for name in ('left', 'right')})

    def forward(self, x):
        return sum(branch(x) for branch in self.branches.values())


def test_a_network_with_branches_of_its_own_nests_reloads_and_fuses():
    def make():
        return scatter(torch.nn.Sequential(OrderedDict(stage=Fork())).double(), 0)

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = DyRepBackbone(make(), input_shape=(3, 8, 8)).eval()
    ops = ['stage.branches.left.conv', 'stage.branches.right.conv']
    assert net.candidates() == ops
    for name in ops:
        net.expand(name, ['1x1', '1x1_kxk'])
        net.expand(f'{name}.branches.kxk.conv', ['1xk'])
    scatter(net, 1)
    wanted = net(x).detach()
    fresh = DyRepBackbone(make(), input_shape=(3, 8, 8)).eval()
    fresh.load_state_dict(net.state_dict())
    assert fresh.structure == net.structure and error(fresh(x).detach(), wanted) < LIMIT
    plain = make().eval()
    plain.load_state_dict(fresh.to_plain().state_dict(), strict=True)
    assert error(plain(x).detach(), wanted) < LIMIT
    fresh.load_state_dict(plain.state_dict())
    assert fresh.structure['ops'] == {} and error(fresh(x).detach(), wanted) < LIMIT
