"""Scores of the metrics against autograd on a small classifier of real images."""
import math

import pytest
import torch

from mmdyrep.dynamics import METRICS, Moment, Op
from tests.images import fashion
from tests.test_dynamics.small_network import SmallNetwork

NAMES = list(SmallNetwork.behind)
MOMENT = Moment(seed=3, number=1)

# metric: score of an op out of (weight, gradient) of the convolution, (gamma, gradient) of the norm behind
FORMULAS = {
    'grad_norm': lambda w, g, gamma, d: sum(value**2 for value in g.flatten().tolist())**0.5,
    'snip': lambda w, g, gamma, d: sum(abs(a * b) for a, b in zip(w.flatten().tolist(), g.flatten().tolist())),
    'synflow': lambda w, g, gamma, d: math.fsum(a * b for a, b in zip(w.flatten().tolist(), g.flatten().tolist())),
    'snip_bn': lambda w, g, gamma, d: math.nan if d is None else sum(
        abs(a * b) for a, b in zip(gamma.tolist(), d.tolist())),
}


def direct(net, x, labels, formula) -> dict:
    """Scores of one iteration, from `torch.autograd.grad`."""
    loss, scores = net.loss(x, labels), {}
    for name, conv, bn in net.ops():
        wanted = [conv.weight] + ([bn.weight] if bn is not None else [])
        g, *d = torch.autograd.grad(loss, wanted, retain_graph=True)
        scores[name] = formula(conv.weight.detach(), g, bn.weight.detach() if d else None, d[0] if d else None)
    return scores


@pytest.mark.parametrize('metric', FORMULAS)
def test_scores_are_the_mean_over_iterations_of_the_formula(metric):
    net, saliency = SmallNetwork().double(), METRICS[metric]()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    wanted = {name: [] for name in NAMES}
    for step in range(3):
        x, labels = fashion(16, start=16 * step, dtype=torch.float64)
        for name, score in direct(net, x, labels, FORMULAS[metric]).items():
            wanted[name].append(score)
        optimizer.zero_grad()
        net.loss(x, labels).backward()
        saliency.observe(net.ops())
        optimizer.step()
    scores = saliency.scores(NAMES, MOMENT)
    assert list(scores) == NAMES
    for name in NAMES:
        mean = sum(wanted[name]) / 3
        assert scores[name] == pytest.approx(mean, rel=1e-9, abs=1e-15, nan_ok=True)
    assert all(isinstance(score, float) for score in scores.values())


@pytest.mark.parametrize('metric', FORMULAS)
def test_scaled_gradients_give_the_same_scores(metric):
    net, plain, scaled = SmallNetwork(), METRICS[metric](), METRICS[metric]()
    x, labels = fashion(16)
    for saliency, scale in ((plain, 1.0), (scaled, 2.0**10)):
        net.zero_grad()
        (net.loss(x, labels) * scale).backward()
        saliency.observe(net.ops(), scale)
    assert scaled.scores(NAMES, MOMENT) == pytest.approx(plain.scores(NAMES, MOMENT), rel=1e-5, abs=1e-9, nan_ok=True)


def observed(metric: str, net: SmallNetwork, steps: int = 1):
    saliency = METRICS[metric]()
    for step in range(steps):
        net.zero_grad()
        net.loss(*fashion(8, start=8 * step)).backward()
        saliency.observe(net.ops())
    return saliency


@pytest.mark.parametrize('metric', FORMULAS)
def test_an_op_without_gradient_has_no_score_and_does_not_count(metric):
    net = SmallNetwork()
    saliency = observed(metric, net)
    first = saliency.scores(NAMES, MOMENT)
    net.conv2.weight.grad = net.bn2.weight.grad = None
    saliency.observe(net.ops())
    # the second iteration had the same gradients, but for the missing ones
    assert saliency.scores(NAMES, MOMENT) == pytest.approx(first, nan_ok=True)
    assert saliency.counts['conv1'] == 2 and saliency.counts['conv2'] == 1
    assert math.isnan(saliency.scores(['unheard'], MOMENT)['unheard'])


@pytest.mark.parametrize('metric', FORMULAS)
@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_nan_and_infinity_stay_visible_in_their_op_alone(metric, bad):
    net = SmallNetwork()
    net.loss(*fashion(8)).backward()
    net.conv2.weight.grad[0, 0, 0, 0] = net.bn2.weight.grad[0] = bad
    saliency = METRICS[metric]()
    saliency.observe(net.ops())
    scores = saliency.scores(NAMES, MOMENT)
    assert not math.isfinite(scores['conv2'])
    assert math.isfinite(scores['conv1']) and math.isfinite(scores['conv4'])


def test_snip_bn_needs_a_norm_with_a_gamma():
    net = SmallNetwork()
    net.loss(*fashion(8)).backward()
    saliency = METRICS['snip_bn']()
    saliency.observe([Op('none', net.conv3, None), Op('bare', net.conv2, torch.nn.BatchNorm2d(8, affine=False))])
    assert all(math.isnan(score) for score in saliency.scores(['none', 'bare'], MOMENT).values())


@pytest.mark.parametrize('metric', FORMULAS)
def test_an_interval_goes_on_from_its_state(metric, tmp_path):
    net = SmallNetwork()
    straight = observed(metric, net, steps=2)
    half = observed(metric, net, steps=1)
    torch.save(half.state_dict(), tmp_path / 'state.pth')
    resumed = METRICS[metric]()
    resumed.load_state_dict(torch.load(tmp_path / 'state.pth', weights_only=False))
    resumed.to(torch.device('cpu'))
    net.zero_grad()
    net.loss(*fashion(8, start=8)).backward()
    resumed.observe(net.ops())
    scores = straight.scores(NAMES, MOMENT)
    assert str(resumed.scores(NAMES, MOMENT)) == str(scores)
    # asking does not end the interval, a reset does
    assert str(straight.scores(NAMES, MOMENT)) == str(scores)
    straight.reset()
    assert all(math.isnan(score) for score in straight.scores(NAMES, MOMENT).values())
    assert straight.scores([], MOMENT) == {}


def test_observing_changes_neither_weights_nor_gradients():
    net = SmallNetwork()
    net.loss(*fashion(8)).backward()
    before = [(parameter.clone(), parameter.grad.clone()) for parameter in net.parameters()]
    for metric in METRICS.values():
        metric().observe(net.ops())
    for parameter, (value, grad) in zip(net.parameters(), before):
        assert torch.equal(parameter, value) and torch.equal(parameter.grad, grad)


def test_random_scores_depend_on_seed_update_and_name_alone():
    def draw(seed: int, number: int, names=('a', 'b', 'c')) -> dict:
        torch.manual_seed(number)
        return METRICS['random']().scores(list(names), Moment(seed, number))

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2, ('c', 'x', 'a'))['c'] == draw(1, 2)['c']
    values = [score for seed in (1, 2) for number in (1, 2) for score in draw(seed, number).values()]
    assert len(set(values)) == 12
    state = torch.random.get_rng_state()
    METRICS['random']().scores(['a'], MOMENT)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_random_scores_are_standard_normal():
    scores = torch.tensor(list(METRICS['random']().scores([str(i) for i in range(2000)], MOMENT).values()))
    assert abs(scores.mean()) < 0.1 and abs(scores.std() - 1) < 0.1


def test_generators_are_equal_on_every_rank_and_differ_between_ops():
    assert torch.equal(torch.rand(4, generator=MOMENT.generator('a')), torch.rand(4, generator=MOMENT.generator('a')))
    assert not torch.equal(torch.rand(4, generator=MOMENT.generator('a')),
                           torch.rand(4, generator=MOMENT.generator('b')))


def test_synflow_is_degenerate_in_front_of_a_norm_in_train_mode_and_snip_bn_is_not():
    """The convolution is scale invariant there, so sum g * w is zero but for eps and rounding (Euler's theorem)."""
    net = SmallNetwork().double()
    net.loss(*fashion(32, dtype=torch.float64)).backward()
    ratio = {}
    for name, conv, _ in net.ops():
        product = conv.weight.grad * conv.weight.detach()
        ratio[name] = (product.sum().abs() / product.abs().sum()).item()
    assert max(ratio['conv1'], ratio['conv2'], ratio['conv4']) < 1e-3 < ratio['conv3']
    for norm in (net.bn1, net.bn2, net.bn4):
        norm.eps = 1e-30  # zero for float64; PyTorch has come to refuse zero itself
    net.zero_grad()
    net.loss(*fashion(32, dtype=torch.float64)).backward()
    synflow, snip = (METRICS[name]() for name in ('synflow', 'snip'))
    for saliency in (synflow, snip):
        saliency.observe(net.ops())
    signed, absolute = synflow.scores(NAMES, MOMENT), snip.scores(NAMES, MOMENT)
    assert all(abs(signed[name]) < 1e-12 * absolute[name] for name in ('conv1', 'conv2', 'conv4'))
    scores = observed('snip_bn', net.float()).scores(NAMES, MOMENT)
    assert all(scores[name] > 1e-3 for name in ('conv1', 'conv2', 'conv4'))
