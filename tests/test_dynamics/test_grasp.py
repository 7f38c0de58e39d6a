"""GraSP (Eq. 14) against second derivatives by finite differences, in float64, on real images."""
from typing import Any, Dict, List

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from mmdyrep.dynamics import Moment, Op, build_metric
from mmdyrep.reparam import Block
from mmdyrep.reparam.surgery import norm_like
from tests.images import fashion
from tests.test_dynamics.small_network import SmallNetwork

NAMES = list(SmallNetwork.behind)
MOMENT = Moment(seed=3, number=1)


def batches(number: int, dtype: Any = torch.float64) -> List[Any]:
    return [fashion(16, start=16 * index, dtype=dtype) for index in range(number)]


def grasp(net: nn.Module, kept: List[Any], ops: Any = None, **settings: Any) -> Dict[str, float]:
    metric = build_metric(dict(type='grasp', **settings))
    metric.measure(net, lambda batch: net.loss(*batch), kept, ops or net.ops())
    return metric.scores(NAMES, MOMENT)


def smooth(**settings: Any) -> SmallNetwork:
    """In float64, with activations that differences of gradients don't stumble over."""
    net = SmallNetwork(**settings).double()
    net.relu1, net.relu2, net.relu3 = nn.Softplus(), nn.Softplus(), nn.Softplus()
    return net


def slopes(net: nn.Module, batch: Any) -> List[Tensor]:
    return torch.autograd.grad(net.loss(*batch), [p for p in net.parameters() if p.requires_grad])


def by_differences(net: nn.Module, of_slope: Any, of_hessian: Any, step: float = 1e-4) -> Dict[str, float]:
    """-theta * H g of each op: H g by central differences of the gradient along g, fourth order."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    along, start = slopes(net, of_slope), [p.detach().clone() for p in parameters]

    def moved(factor: float) -> List[Tensor]:
        with torch.no_grad():
            for parameter, value, direction in zip(parameters, start, along):
                parameter.copy_(value + factor * step * direction)
        found = slopes(net, of_hessian)
        with torch.no_grad():
            for parameter, value in zip(parameters, start):
                parameter.copy_(value)
        return found

    table = zip(moved(2), moved(1), moved(-1), moved(-2))
    products = [(-far + 8 * near - 8 * back + rear) / (12 * step) for far, near, back, rear in table]
    of_parameter = dict(zip(map(id, parameters), products))
    return {name: -(of_parameter[id(conv.weight)] * conv.weight.detach()).sum().item() for name, conv, _ in net.ops()}


def mean(tables: List[Dict[str, float]]) -> Dict[str, float]:
    return {name: sum(table[name] for table in tables) / len(tables) for name in NAMES}


@pytest.mark.parametrize('frozen', [False, True])
def test_the_formula(frozen):
    net = smooth()
    # what is frozen has no part in H and g
    net.head.requires_grad_(not frozen)
    kept = batches(3)
    wanted = mean([by_differences(net, batch, batch) for batch in kept])
    assert grasp(net, kept) == pytest.approx(wanted, rel=1e-6)
    assert len(set(wanted.values())) == 4


def test_with_two_batches_g_is_that_of_the_batch_before():
    net, kept = smooth(), batches(3)
    wanted = mean([by_differences(net, kept[index - 1], kept[index]) for index in range(3)])
    assert grasp(net, kept, two_batches=True) == pytest.approx(wanted, rel=1e-6)
    assert all(score != score for score in grasp(net, kept[:1], two_batches=True).values())


def without_eps(net: SmallNetwork) -> SmallNetwork:
    for norm in (net.bn1, net.bn2, net.bn4):
        norm.eps = 1e-30  # zero for float64; PyTorch has come to refuse zero itself
    return net


def test_in_front_of_a_norm_it_is_the_squared_norm_of_the_gradient():
    net, kept = without_eps(SmallNetwork().double()), batches(2)
    first, second = ({name: slope for (name, _), slope in zip(net.named_parameters(), slopes(net, batch))}
                     for batch in kept)
    same, two = grasp(net, kept), grasp(net, kept, two_batches=True)
    for name in ('conv1', 'conv2', 'conv4'):
        one, other = first[f'{name}.weight'], second[f'{name}.weight']
        assert same[name] == pytest.approx(((one**2).sum() + (other**2).sum()).item() / 2, rel=1e-9)
        assert two[name] == pytest.approx((one * other).sum().item(), rel=1e-9)
    # conv3 has a bias in place of a norm
    squared = (first['conv3.weight']**2).sum() + (second['conv3.weight']**2).sum()
    assert same['conv3'] != pytest.approx(squared.item() / 2, rel=1e-3)


def test_the_model_is_left_as_it_is():
    net = SmallNetwork(dropout=0.5)
    net.loss(*batches(1, torch.float32)[0]).backward()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in net.parameters()]
    random = torch.random.get_rng_state()
    scores = grasp(net, batches(2, torch.float32))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(net.parameters(), grads))
    assert torch.equal(torch.random.get_rng_state(), random)
    # and the same random state gives the same scores
    assert grasp(net, batches(2, torch.float32)) == scores


def test_a_frozen_op_has_no_score():
    net = SmallNetwork()
    net.conv2.weight.requires_grad_(False)
    scores = grasp(net, batches(1, torch.float32))
    assert scores['conv2'] != scores['conv2'] and scores['conv1'] == scores['conv1']


class Checkpointed(SmallNetwork):
    """Keeps no activation of its first layers, as mmpretrain's backbones do with ``with_cp``."""

    with_cp = True

    def forward(self, x: Tensor) -> Tensor:
        first, rest = (nn.Sequential(*list(self)[part]) for part in (slice(3), slice(3, None)))
        if self.with_cp and torch.is_grad_enabled():
            return rest(torch.utils.checkpoint.checkpoint(first, x.requires_grad_(), use_reentrant=True))
        return rest(first(x))


def test_checkpointed_parts_are_run_without_it():
    net, kept = Checkpointed(), batches(2, torch.float32)
    wanted = grasp(SmallNetwork(), kept)
    assert grasp(net, kept) == pytest.approx(wanted, rel=1e-6)
    assert net.with_cp


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope


def test_a_model_without_second_derivatives_is_refused():
    net = SmallNetwork()
    net.relu3.forward = OnceOnly.apply
    with pytest.raises(RuntimeError, match='the metric grasp needs the second derivative.*SmallNetwork.*snip'):
        grasp(net, batches(1, torch.float32))


def test_other_errors_come_as_they_are():
    net = SmallNetwork()
    with pytest.raises(RuntimeError, match='^broken on purpose'):
        def fail(*_: Any) -> Tensor:
            raise RuntimeError('broken on purpose')

        build_metric('grasp').measure(net, fail, [None], net.ops())


@pytest.mark.parametrize('frozen_statistics', [False, True])
def test_nested_ops_are_scored(frozen_statistics):
    net = smooth().train(not frozen_statistics)
    block = Block(net.conv2, norm_like(net.bn2))
    block.expand(['1x1', '1x1_kxk'], 0.5, torch.Generator().manual_seed(0))
    net.conv2 = block.train(net.training)
    inner = block.branches['1x1_kxk']
    ops = [Op('conv2', inner.conv, inner.bn)]
    kept = batches(1)
    net.ops = lambda: ops
    assert grasp(net, kept, ops)['conv2'] == pytest.approx(by_differences(net, kept[0], kept[0])['conv2'], rel=1e-6)
