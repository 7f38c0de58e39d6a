"""Metrics that vote, and metrics by name."""
import math
from typing import Any, Dict, List

import pytest
import torch

from mmdyrep.dynamics import METRICS, Moment, Saliency, build_metric
from mmdyrep.dynamics.vote import Vote
from tests.images import fashion
from tests.test_dynamics.small_network import SmallNetwork

NAMES = list(SmallNetwork.behind)
MOMENT = Moment(seed=3, number=1)
MEMBERS = ('grad_norm', 'snip', 'grasp', 'synflow')


class Fixed(Saliency):
    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = values

    def scores(self, names: List[str], moment: Moment) -> Dict[Any, float]:
        return dict(zip(names, self.values))


def ballot(*tables: Any):
    vote = Vote({f'm{index}': Fixed(*table) for index, table in enumerate(tables)})
    return vote, vote.scores(['a', 'b', 'c'], MOMENT)


def test_most_votes_win_whatever_the_ranks():
    # b is first twice and last twice, a first once and never last
    vote, scores = ballot((2, 3, 1), (2, 3, 1), (3, 1, 2), (2, 1, 3))
    assert vote.notes == {'votes': {'m0': 'b', 'm1': 'b', 'm2': 'a', 'm3': 'c'}}
    assert max(scores, key=scores.get) == 'b'
    # mean ranks 7/4, 2 and 9/4 of three ops
    assert scores == pytest.approx(dict(a=1 + 1 - 7 / 16, b=2 + 1 - 2 / 4, c=1 + 1 - 9 / 16))


def test_equal_votes_are_decided_by_the_mean_rank():
    _, scores = ballot((3, 2, 1), (1, 2, 3), (1, 3, 2))
    # a 1 3 3, b 2 2 1, c 3 1 2: one vote each
    assert sorted(scores, key=scores.get, reverse=True) == ['b', 'c', 'a']


def test_an_op_without_score_comes_last_with_that_metric_and_is_unscored_if_all_lack_it():
    vote, scores = ballot((math.nan, 1, math.nan), (5, math.inf, math.nan))
    assert vote.notes == {'votes': {'m0': 'b', 'm1': 'a'}}
    assert scores['a'] == scores['b'] == pytest.approx(1 + 1 - 2 / 4)
    assert math.isnan(scores['c'])
    vote, scores = ballot((math.nan,) * 3)
    assert vote.notes == {'votes': {}} and all(map(math.isnan, scores.values()))


def observe(metric: Saliency, net: SmallNetwork, steps: range) -> None:
    kept = []
    for step in steps:
        kept.append(fashion(16, start=16 * step, dtype=torch.float64))
        net.zero_grad()
        net.loss(*kept[-1]).backward()
        metric.observe(iter(net.ops()))
    metric.measure(net, lambda batch: net.loss(*batch), kept, net.ops())


def test_the_paper_s_four_vote_as_they_do_alone():
    net, alone = SmallNetwork().double(), {name: build_metric(name) for name in MEMBERS}
    vote = build_metric('vote')
    for metric in (vote, *alone.values()):
        observe(metric, net, range(3))
    scores = vote.scores(NAMES, MOMENT)
    tables = {name: metric.scores(NAMES, MOMENT) for name, metric in alone.items()}
    firsts = {name: max(table, key=table.get) for name, table in tables.items()}
    assert vote.notes['votes'] == firsts
    for name in NAMES:
        ranks = [1 + sum(other > table[name] for other in table.values()) for table in tables.values()]
        assert scores[name] == pytest.approx(list(firsts.values()).count(name) + 1 - sum(ranks) / 4 / 5)


def test_an_interval_goes_on_from_its_state():
    net = SmallNetwork().double()
    straight, half, resumed = (build_metric('vote') for _ in range(3))
    observe(straight, net, range(2))
    observe(half, net, range(1))
    resumed.load_state_dict(half.state_dict())
    resumed.to(torch.device('cpu'))
    observe(resumed, net, range(1, 2))
    assert resumed.scores(NAMES, MOMENT) == straight.scores(NAMES, MOMENT)
    straight.reset()
    assert all(map(math.isnan, straight.scores(NAMES, MOMENT).values()))


def test_scores_of_another_metric_do_not_go_on():
    net, snip = SmallNetwork(), build_metric('snip')
    net.loss(*fashion(8)).backward()
    snip.observe(net.ops())
    for metric in ('synflow', 'vote', 'grasp'):
        other = build_metric(metric)
        other.load_state_dict(snip.state_dict())
        assert all(map(math.isnan, other.scores(NAMES, MOMENT).values()))
    snip.load_state_dict(build_metric('vote').state_dict())
    assert not math.isnan(snip.scores(NAMES, MOMENT)['conv1'])


def test_metrics_by_name_and_with_settings():
    assert [type(build_metric(name)) for name in METRICS] == list(METRICS.values())
    assert [build_metric(name).batches for name in ('snip', 'grasp', 'vote')] == [0, 1, 1]
    chosen = build_metric(dict(type='vote', metrics=['snip_bn', dict(type='grasp', two_batches=True)]))
    assert list(chosen.metrics) == ['snip_bn', 'grasp'] and chosen.batches == 2
    for wrong, words in (('snap', "unknown metric 'snap'"), (dict(two_batches=True), 'unknown metric None'),
                         (dict(type='snip', two_batches=True), "'snip' with the settings"),
                         (dict(type='vote', metrics=['snap']), "unknown metric 'snap'")):
        with pytest.raises(ValueError, match=words):
            build_metric(wrong)
