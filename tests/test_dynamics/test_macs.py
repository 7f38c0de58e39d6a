"""Multiply-adds against numbers worked out by hand and against the published complexities."""
import copy

import pytest
import torch
from torch import nn

from mmdyrep.dynamics import macs
from mmdyrep.reparam import SPACES, Geometry, expand, fitting, probe, survey
from mmdyrep.reparam.surgery import geometry_of


@pytest.mark.parametrize('module, size, wanted', [
    (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12), 10 * 12 * 8 * 27),
    (nn.Conv2d(3, 8, 3, padding=1), (5, 3, 10, 12), 5 * 10 * 12 * 8 * 27),
    (nn.Conv2d(4, 8, (3, 5), 2, groups=2), (1, 4, 11, 11), 5 * 4 * 8 * 2 * 15),
    (nn.Conv2d(6, 6, 3, padding=1, groups=6), (1, 6, 7, 7), 49 * 6 * 9),
    (nn.Conv1d(3, 4, 5), (2, 3, 9), 2 * 5 * 4 * 15),
    (nn.ConvTranspose2d(4, 6, 2, 2), (1, 4, 5, 5), 25 * 4 * 6 * 4),
    (nn.ConvTranspose2d(4, 6, 2, 2, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 4),
    (nn.Linear(7, 5), (3, 7), 3 * 35),
    (nn.Linear(7, 5), (3, 2, 7), 6 * 35),
    (nn.BatchNorm2d(3), (2, 3, 4, 4), 0),
    (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 2)), (1, 3, 4, 4),
     16 * 24 + 64),
])
def test_one_multiply_add_counts_once(module, size, wanted):
    assert macs.count(module, torch.zeros(size)).total == wanted


def test_names_sizes_and_repeated_calls():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.unused = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3)

        def forward(self, x, again=False):
            return self.conv(self.conv(x)) if again else self.conv(x)

    found = macs.count(Twice(), torch.zeros(1, 2, 6, 5))
    assert found.by_name == {'conv': 30 * 36} and found.inputs == {'conv': (1, 2, 6, 5)}
    assert macs.count(Twice(), torch.zeros(1, 2, 6, 5), again=True).by_name == {'conv': 2 * 30 * 36}


def test_the_model_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)).train()
    net[1].eval()
    state, rng = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    macs.count(net, torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(RuntimeError):
        macs.count(net, torch.zeros(2, 3, 5, 5))
    assert [module.training for module in net.modules()] == [True, True, False, True]
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert not any(module._forward_hooks for module in net.modules())


# by hand, of a 3x3 convolution from 4 to 6 channels with stride 2 on a 9x7 map, padding 1: 5x4 outputs
BY_HAND = {
    '1x1': 20 * 24,
    '1x1_kxk': 63 * 16 + 20 * 24 * 9,
    '1x1_avg': 63 * 24,
    '1xk': 20 * 24 * 3,
    'kx1': 20 * 24 * 3,
}


@pytest.mark.parametrize('branch', BY_HAND)
def test_macs_of_a_branch_by_hand(branch):
    conv = nn.Conv2d(4, 6, 3, 2, 1)
    assert macs.of_branches([branch], Geometry.of(conv), (9, 7)) == BY_HAND[branch]
    net = nn.Sequential(conv)
    plain = macs.count(net, torch.zeros(1, 4, 9, 7)).total
    expand(net, '0', [branch], {'0': None}, gamma=0.1)
    found = macs.count(net, torch.zeros(1, 4, 9, 7))
    assert found.total == plain + BY_HAND[branch]
    assert found.inputs['0'] == (1, 4, 9, 7) and '0' not in found.by_name


def test_branches_add_up_and_a_depthwise_average_and_identity_are_free():
    geometry = Geometry.of(nn.Conv2d(4, 6, 3, 2, 1))
    assert macs.of_branches(list(BY_HAND), geometry, (9, 7)) == sum(BY_HAND.values())
    depthwise = Geometry.of(nn.Conv2d(4, 4, 3, 1, 1, groups=4))
    assert macs.of_branches(['1x1_avg', 'residual'], depthwise, (9, 7)) == 0
    assert macs.of_branches(['1x1_kxk'], depthwise, (9, 7)) == 63 * 4 + 63 * 36


@pytest.mark.parametrize('space, giga, million', [(None, 1.814, 11.69), ('dbb', 4.126, 26.3), ('dyrep', 5.244, 33.6)])
def test_resnet18_costs_what_the_paper_says(space, giga, million):
    """Tables 2 and 8: every 3x3 convolution a block, the stem plain, 224x224, head included."""
    from torchvision.models import resnet18
    net = resnet18()
    x = torch.zeros(1, 3, 224, 224)
    ops = survey(net, probe(net, x[..., :64, :64])).ops
    extra, inputs = 0, macs.count(net, x).inputs
    for name in [name for name in ops if space and name != 'conv1']:
        geometry = geometry_of(net.get_submodule(name))
        branches = fitting(list(SPACES[space]), geometry)
        extra += macs.of_branches(branches, geometry, inputs[name][2:])
        expand(net, name, branches, ops, gamma=1)
    total = macs.count(net, x).total
    assert total / 1e9 == pytest.approx(giga, abs=6e-4)
    assert macs.parameters(net) / 1e6 == pytest.approx(million, abs=0.06)
    assert total - extra == macs.count(resnet18(), x).total
