"""A network that has run within `untouched` is, to the last bit and object, what it was."""
import random
from collections import Counter, OrderedDict, deque
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from torch import nn

from mmdyrep.reparam.untouched import untouched
from tests.runs import differences


class Ramp:
    """A schedule that counts for itself."""

    __slots__ = ('step', 'seen')

    def __init__(self) -> None:
        self.step, self.seen = 0, []


class Busy(nn.Module):
    """Changes whatever a forward pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)
        self.calls, self.name, self.pair = 0, 'none', (Ramp(), [0])
        self.ramp, self.ramp.seen = Ramp(), [1, 2]
        self.queue, self.log, self.table = deque([1, 2], maxlen=2), [[1], [2]], OrderedDict(a=1, b=[2])
        self.names, self.counts = {'x'}, Counter('aab')
        self.array, self.cache = np.arange(3.), torch.arange(3.)
        self.register_buffer('bank', torch.zeros(4, 2))
        self.register_buffer('pointer', torch.zeros((), dtype=torch.long))
        self.register_buffer('lost', None)
        self.lazily = None
        self.generators = [random.Random(1), np.random.RandomState(1), np.random.default_rng(1),
                           torch.Generator().manual_seed(1)]
        self.teacher = [nn.BatchNorm2d(2)]  # hidden from the registry
        self.shared = self.log[0]

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.name, self.lazily, self.extra = 'x', nn.Conv2d(2, 2, 1), 1
        self.pair[0].step += 1
        self.pair[1][0] += 1
        self.ramp.step, self.ramp.seen = self.ramp.step + 1, self.ramp.seen + [3]
        self.queue.append(3)
        self.log[0].append(3)
        self.log.append(4)
        self.table['b'].append(3)
        self.table.move_to_end('a')
        self.names.add('y')
        self.counts['c'] += 1
        self.array += 1
        self.cache += 1
        self.bank[0] = 1
        self.pointer += 1
        self.pointer = self.pointer + 1
        self.lost = torch.ones(1)
        for generator in self.generators[:1]:
            generator.random()
        self.generators[1].rand(), self.generators[2].random(), torch.rand(1, generator=self.generators[3])
        random.random(), np.random.rand(), torch.rand(1)
        self.teacher[0](x)
        with torch.no_grad():
            self.conv.weight.mul_(2)  # as data-dependent initialization does
        self.conv.bias.data = torch.ones(2)
        self.conv.requires_grad_(False)
        self.norm.eval()
        self.register_forward_hook(lambda *_: None)
        return self.norm(x)


def state(value: Any, seen: Dict[int, Any]) -> Any:
    """Identity and content of all that is reachable."""
    if isinstance(value, (int, float, str, bytes, type(None), type)):
        return value
    if id(value) in seen:
        return id(value)
    seen[id(value)] = value
    if isinstance(value, torch.Tensor):
        return id(value), value.data_ptr(), value.requires_grad, value.detach().tolist()
    if isinstance(value, np.ndarray):
        return id(value), value.tolist()
    if isinstance(value, dict):
        return id(value), [(key, state(item, seen)) for key, item in value.items()]
    if isinstance(value, (list, tuple, set, deque)):
        return id(value), [state(item, seen) for item in value]
    draws: List[Any] = []
    if isinstance(value, random.Random):
        draws = list(value.getstate())
    elif isinstance(value, np.random.RandomState):
        draws = value.get_state()[1].tolist()
    elif isinstance(value, np.random.Generator):
        draws = [str(value.bit_generator.state)]
    elif isinstance(value, torch.Generator):
        draws = value.get_state().tolist()
    slots = [state(getattr(value, name), seen) for name in getattr(type(value), '__slots__', ())]
    return id(value), draws, state(getattr(value, '__dict__', None), seen), slots


@pytest.mark.parametrize('fails', [False, True])
def test_everything_is_what_it_was(fails: bool) -> None:
    net, x = Busy(), torch.randn(4, 2, 5, 5)
    net(x)  # some state to begin with
    net.conv.requires_grad_(True)
    before = state(net, {})
    draws = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with pytest.raises(ArithmeticError) if fails else untouched(net):
        with untouched(net):
            net(x)
            net(x)
            assert state(net, {}) != before
            if fails:
                raise ArithmeticError
    assert differences(before, state(net, {})) == []
    assert draws == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_gradients_and_what_can_not_be_written_are_left_alone() -> None:
    net = nn.Linear(2, 2)
    net.expanded, net.fixed = torch.zeros(1, 2).expand(3, 2), np.broadcast_to(np.zeros(2), (3, 2))
    net.sparse, net.nowhere = torch.eye(2).to_sparse(), torch.empty(2, device='meta')
    net.lazy = nn.LazyLinear(2)
    net(torch.ones(1, 2)).sum().backward()
    gradient = net.weight.grad
    with untouched(net):
        net.zero_grad()
    assert net.weight.grad is gradient


def test_machinery_that_a_module_refers_to_is_not_restored() -> None:
    class Images(torch.utils.data.Dataset):
        read = 0

    net = nn.Linear(2, 2)
    net.images = Images()
    with untouched(net):
        net.images.read = 7
    assert net.images.read == 7


@pytest.mark.parametrize('kind', ['SGD', 'Adam'])
def test_a_step_of_an_optimizer_that_the_model_holds_is_taken_back(kind: str) -> None:
    net = nn.Linear(2, 2)
    net.optimizer = getattr(torch.optim, kind)(net.parameters(), lr=0.1)

    def step() -> torch.Tensor:
        net(torch.ones(1, 2)).sum().backward()
        net.optimizer.step()
        net.optimizer.zero_grad()
        return net.weight.detach().clone()

    step()
    with untouched(net):
        first = step()
        net.optimizer.param_groups[0]['lr'] = 7
    assert torch.equal(step(), first)


def test_a_scripted_part_keeps_its_buffers() -> None:
    net = nn.Sequential(torch.jit.script(nn.BatchNorm2d(2)))
    before = net[0].running_mean.clone()
    with untouched(net):
        net(torch.randn(4, 2, 3, 3))
    assert torch.equal(net[0].running_mean, before)
