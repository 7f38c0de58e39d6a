"""The batch norm behind a convolution is found from what happens to its output, however the network is written."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyrep.reparam import probe

X = torch.zeros(1, 2, 8, 8)


class Net(nn.Module):
    """Two convolutions and norms, used as ``use`` says."""

    def __init__(self, use) -> None:
        super().__init__()
        # the norms stand in the other order
        self.second, self.first = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.a, self.b = (nn.Conv2d(2, 2, 3, padding=1, bias=False) for _ in range(2))
        self.drop = nn.Dropout(0.5)
        self.use = use

    def forward(self, x: Tensor):
        return self.use(self, x)


def set_corner(x: Tensor) -> Tensor:
    x[..., 0, 0] = 0
    return x


FOLLOWERS = {
    'in a row': (lambda net, x: net.second(net.b(F.relu(net.first(net.a(x))))), 'first', 'second'),
    'shortcut around the norms': (lambda net, x: x + net.second(net.b(net.first(net.a(x)))), 'first', 'second'),
    'shape is read': (lambda net, x: (lambda y: net.first(y) if y.shape[1] == 2 and y.dim() == 4 else y)(net.a(x)),
                      'first', None),
    'output has a second reader': (lambda net, x: (lambda y: net.first(y) + y)(net.a(x)), None, None),
    'second reader in a list': (lambda net, x: (lambda y: torch.cat([y, net.first(y)]))(net.a(x)), None, None),
    'output is returned, too': (lambda net, x: (lambda y: {'raw': [y], 'out': net.first(y)})(net.a(x)), None, None),
    'function in between': (lambda net, x: net.first(F.relu(net.a(x))), None, None),
    'function in place in between': (lambda net, x: net.first(F.relu_(net.a(x))), None, None),
    'method in between': (lambda net, x: net.first(net.a(x).mul(2)), None, None),
    'a view in between': (lambda net, x: net.first(net.a(x)[:, :, 1:]), None, None),
    'values set in between': (lambda net, x: net.first(set_corner(net.a(x))), None, None),
    'dropout in between': (lambda net, x: net.first(net.drop(net.a(x)) + 0), None, None),
    'two norms read it': (lambda net, x: (lambda y: net.first(y) + net.second(y))(net.a(x)), None, None),
    'norms in turn': (lambda net, x: net.second(net.first(net.a(x))), 'first', None),
    'sum of two': (lambda net, x: net.first(net.a(x) + net.b(x)), None, None),
    'convolution is used twice': (lambda net, x: net.first(net.a(net.a(x))), None, None),
    'nobody reads it': (lambda net, x: (net.a(x), x)[1], None, None),
    'functional norm': (lambda net, x: F.batch_norm(net.a(x), torch.zeros(2), torch.ones(2)), None, None),
}


@pytest.mark.parametrize('case', FOLLOWERS)
def test_who_follows_whom(case):
    use, first, second = FOLLOWERS[case]
    flow = probe(Net(use), X)
    assert (flow.convs['a'].follower(), flow.convs['b'].follower()) == (first, second)


def test_calls_are_counted():
    flow = probe(Net(lambda net, x: net.first(net.a(net.first(net.a(x))))), X)
    assert (flow.convs['a'].calls, flow.convs['b'].calls) == (2, 0)
    assert flow.norm_calls == {'first': 2, 'second': 0}


def fails(net: nn.Module, x: Tensor) -> Tensor:
    net.first(net.a(x) + torch.rand(1))
    raise ArithmeticError('in the middle')


@pytest.mark.parametrize('use', [fails, lambda net, x: net.first(net.a(x)) + torch.rand(1)])
def test_modes_buffers_hooks_and_random_state_are_as_before_also_when_the_forward_fails(use):
    net = Net(use).train()
    net.first.eval()
    buffers, state = copy.deepcopy(dict(net.named_buffers())), torch.random.get_rng_state()
    modes = [module.training for module in net.modules()]
    if use is fails:
        with pytest.raises(ArithmeticError):
            probe(net, X)
    else:
        probe(net, X)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_real_network_with_shortcuts():
    from torchvision.models import resnet18
    flow = probe(resnet18(), torch.zeros(1, 3, 64, 64))
    names = {name: use.follower() for name, use in flow.convs.items()}
    assert len(names) == 20 and names['conv1'] == 'bn1'
    assert names['layer2.0.downsample.0'] == 'layer2.0.downsample.1'
    assert all(bn == name.replace('conv', 'bn') for name, bn in names.items() if 'downsample' not in name)
