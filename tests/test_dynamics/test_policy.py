"""Which op grows, which branches go."""
import math
import statistics

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from mmdyrep.dynamics import importance, pick, rank, redundant
from mmdyrep.reparam import Block

BRANCHES = ['1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1', 'residual']
positive = st.floats(0, 3)
importances = st.lists(positive, min_size=1, max_size=6).map(lambda values: dict(zip(BRANCHES, values)))


def test_the_greatest_score_comes_first_signs_included():
    assert rank({'a': -5.0, 'b': 1.0, 'c': 3.0}).ranked == ['c', 'b', 'a']
    assert rank({'a': -5.0, 'b': 1.0, 'c': 3.0}).tied == []


def test_equal_scores_keep_the_order_of_the_network_and_a_shared_first_place_is_told():
    ranking = rank({'late': 1.0, 'b': 2.0, 'a': 2.0, 'zero': 1.0})
    assert ranking.ranked == ['b', 'a', 'late', 'zero']
    assert ranking.tied == ['b', 'a']
    assert rank({'a': 3.0, 'b': 2.0, 'c': 2.0}).tied == []


def test_what_is_no_finite_number_does_not_take_part():
    ranking = rank({'a': math.nan, 'b': 1.0, 'c': math.inf, 'd': -math.inf, 'e': 2.0})
    assert ranking.ranked == ['e', 'b'] and ranking.unscored == ['a', 'c', 'd']
    assert rank({'a': math.nan}) == ([], ['a'], [])
    assert rank({}) == ([], [], [])


@given(st.dictionaries(st.text(max_size=3), st.floats()))
def test_every_op_is_ranked_or_unscored_once(scores):
    ranking = rank(scores)
    assert sorted(ranking.ranked + ranking.unscored) == sorted(scores)
    values = [scores[name] for name in ranking.ranked]
    assert values == sorted(values, reverse=True)


COSTS = {'a': 50, 'b': 10, 'c': 30, 'd': 1}


@pytest.mark.parametrize('number, budget, chosen, passed', [
    (1, None, ['a'], []),
    (3, None, ['a', 'b', 'c'], []),
    (9, None, ['a', 'b', 'c', 'd'], []),
    (0, 100, [], []),
    (1, 50, ['a'], []),
    (1, 49.9, ['b'], ['a']),
    (2, 60, ['a', 'b'], []),
    (2, 59, ['a', 'd'], ['b', 'c']),
    (3, 41, ['b', 'c', 'd'], ['a']),
    (4, 40, ['b', 'c'], ['a', 'd']),
    (1, 0.5, [], ['a', 'b', 'c', 'd']),
    (1, -5, [], ['a', 'b', 'c', 'd']),
])
def test_an_op_that_would_exceed_the_budget_is_passed_over_for_the_next(number, budget, chosen, passed):
    assert pick(list(COSTS), number, COSTS.get, budget) == (chosen, passed)


def test_costs_are_not_asked_for_without_a_budget():
    assert pick(['a', 'b'], 1, lambda name: 1 / 0, None).chosen == ['a']


def block() -> Block:
    made = Block(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d)
    with torch.no_grad():
        made.expand(['1x1', '1x1_kxk', '1x1_avg', 'residual'], 0.01)
    return made


def test_importance_is_the_mean_gamma_of_a_branch_relative_to_the_original():
    """Eq. 9, of the last norm of each branch, signs left out."""
    made = block()
    gammas = {'kxk': [2.0, -2.0, 1.0, -1.0], '1x1': [0.3, -0.3, 0.3, -0.3], '1x1_kxk': [0.0, 0.0, 0.0, 6.0],
              '1x1_avg': [0.0] * 4, 'residual': [1.5] * 4}
    for name, values in gammas.items():
        made.branches[name].bn.weight.data = torch.tensor(values)
    made.branches['1x1_kxk'].bn1.weight.data.fill_(100)
    assert importance(made) == pytest.approx({'1x1': 0.2, '1x1_kxk': 1.0, '1x1_avg': 0.0, 'residual': 1.0})


def test_importance_is_finite_where_the_original_has_vanished():
    made = block()
    made.origin.bn.weight.data.zero_()
    assert all(math.isfinite(value) for value in importance(made).values())


@given(importances, st.floats(0, 1))
def test_branches_below_the_mean_go_once_the_population_deviation_passes_lambda(values, threshold):
    cut = redundant(values, threshold)
    mean, deviation = statistics.fmean(values.values()), statistics.pstdev(values.values())
    if abs(deviation - threshold) > 1e-9:
        near = [name for name, value in values.items() if abs(value - mean) < 1e-9]
        wanted = [name for name, value in values.items() if value < mean] if deviation > threshold else []
        assert [name for name in cut if name not in near] == [name for name in wanted if name not in near]
    assert set(cut) < set(values)


def test_the_deviation_is_that_of_the_population_and_must_pass_lambda():
    values = {'1x1': 1.0, '1xk': 3.0}  # population 1, sample 1.41
    assert redundant(values, 0.99) == ['1x1']
    assert redundant(values, 1.0) == [] and redundant(values, 1.2) == []


@given(importances, positive)
def test_a_bound_spares_what_is_not_below_it(values, bound):
    assert redundant(values, 0.02, bound) == [name for name in redundant(values, 0.02) if values[name] < bound]


@pytest.mark.parametrize('values', [
    {}, {'1x1': 0.5}, {'1x1': 0.5, '1xk': 0.5}, {'1x1': math.nan, '1xk': 1.0}, {'1x1': math.inf, '1xk': 1.0}])
def test_nothing_goes_where_there_is_nothing_to_compare(values):
    assert redundant(values, 0.0) == []


def test_a_branch_at_the_mean_stays():
    assert redundant({'1x1': 0.5, '1xk': 1.0, 'kx1': 1.5}, 0.02) == ['1x1']


def test_the_authors_dep_takes_the_sample_deviation_and_a_bound():
    # deviation 0.0189 of the population, 0.0231 of the sample
    values = {'1x1': 0.06, '1xk': 0.1, 'kx1': 0.1}
    assert redundant(values, 0.02) == []
    assert redundant(values, 0.02, unbiased=True) == ['1x1']
    assert redundant(values, 0.02, bound=0.05, unbiased=True) == []
    # of one branch there is no deviation
    assert redundant({'1x1': 0.5}, 0.0, unbiased=True) == []
