"""Differences of twins: who is paired with whom, and an interval that holds what it says."""
import itertools
from typing import Any, Dict, List

import numpy as np
import pytest

from mmdyrep.experiments.experiment import Claim
from mmdyrep.experiments.pairs import bootstrap, compared, tail
from mmdyrep.experiments.results import table_of
from mmdyrep.experiments.study_report import verdict


def test_interval_is_that_of_all_resamples_there_are() -> None:
    values = [0.31, -0.12, 0.55, 0.20, 0.07]
    # 3125 ways to draw five of five; quantiles of Student's t with 4 degrees of freedom, times sqrt(5 / 4)
    means = np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=5)])
    share = tail(5)
    assert share == pytest.approx(0.000956, abs=2e-6)
    found = bootstrap(values, 400_000)
    # the ends are means that one draw in some hundreds has: those beside them are near
    assert found == pytest.approx(np.quantile(means, [share, 1 - share]), abs=0.012)
    assert found == bootstrap(values, 400_000) and bootstrap(values, 400_000, seed=1) == pytest.approx(found, abs=0.012)


def test_interval_moves_and_grows_with_the_values() -> None:
    values = np.array([0.31, -0.12, 0.55, 0.20, 0.07, 0.4])
    low, high = bootstrap(values)
    assert bootstrap(3 - 2 * values) == pytest.approx((3 - 2 * high, 3 - 2 * low), abs=0.03)
    assert bootstrap([0.25] * 5) == (0.25, 0.25)


@pytest.mark.parametrize('number, least, most', [(5, 0.90, 0.955), (12, 0.93, 0.97)])
def test_the_interval_holds_the_mean_of_a_normal_in_about_95_of_100_draws(number: int, least: float,
                                                                          most: float) -> None:
    random = np.random.default_rng(3)
    inside = [low <= 0.4 <= high for low, high in (bootstrap(random.normal(0.4, 0.3, number), 4000)
                                                   for _ in range(1500))]
    assert least < np.mean(inside) < most


def test_fewer_than_five_have_no_interval() -> None:
    assert bootstrap([0.1, 0.2, 0.3, 0.4]) is None and bootstrap([]) is None


def runs(rows: Dict[str, Dict[int, float]], column: str = '15 epochs') -> List[Dict[str, Any]]:
    return [dict(row=row, column=column, seed=seed, value=value, seconds=60.0)
            for row, values in rows.items() for seed, value in values.items()]


def test_twins_are_paired_by_seed_and_one_without_its_twin_is_left_out_and_named() -> None:
    results = runs({'plain': {4: 90.0, 5: 91.0, 6: 80.0, 7: 90.5, 8: 90.0, 9: 89.0},
                    'DyRep': {9: 90.0, 8: 90.2, 7: 90.6, 5: 91.3, 4: 90.4}, 'DBB': {6: 81.0}})
    table = compared(table_of(results), ('plain', 'DBB', 'not there'))
    plain, dyrep, dbb = (entry['pairs'] for entry in table)
    assert list(plain) == ['DBB'] and list(dyrep) == ['plain', 'DBB'] and list(dbb) == ['plain']
    pair = dyrep['plain']
    assert pair['seeds'] == [4, 5, 7, 8, 9] and pair['values'] == pytest.approx([0.4, 0.3, 0.1, 0.2, 1.0])
    assert pair['mean'] == pytest.approx(0.4) and pair['alone'] == [6]
    assert (pair['low'], pair['high']) == bootstrap(pair['values']) and 0.1 <= pair['low'] < 0.4 < pair['high'] <= 1
    # no twin at all: nothing to say but who is alone
    assert dyrep['DBB'] == {'seeds': [], 'values': [], 'alone': [4, 5, 6, 7, 8, 9]}
    assert dbb['plain']['mean'] == 1 and 'low' not in dbb['plain']


def test_rows_are_compared_within_their_column() -> None:
    results = [*runs({'plain': {4: 90.0}, 'DyRep': {4: 90.5}}),
               *runs({'plain': {4: 93.0}, 'DyRep': {4: 92.0}}, '60 epochs')]
    means = [entry['pairs']['plain']['mean'] for entry in compared(table_of(results), ('plain', )) if entry['pairs']]
    assert means == [0.5, -1.0]


@pytest.mark.parametrize('low, high, share, margin, time, said', [
    (0.1, 0.5, None, 0.0, None, 'yes'),
    (-0.1, 0.5, None, 0.0, None, 'open: the interval holds both'),
    (-0.5, -0.1, None, 0.0, None, 'no'),
    (-0.05, 0.5, 0.5, 0.1, 0.6, 'yes'),
    (-0.05, 0.5, 0.7, 0.1, 0.6, 'no: it takes longer'),
    (-0.2, 0.5, 0.5, 0.1, 0.6, 'open: the interval holds both'),
    (-0.5, -0.2, 0.5, 0.1, 0.6, 'no'),
    (-0.3, -0.05, 0.5, 0.1, 0.6, 'open: the interval holds both'),
    (-0.05, 0.5, None, 0.1, 0.6, 'open: no time was taken'),
])
def test_a_claim_is_shown_refuted_or_open(low: float, high: float, share: Any, margin: float, time: Any,
                                          said: str) -> None:
    claim = Claim('a is above b', 'a', 'b', margin, time)
    assert verdict(claim, {'mean': 0.0, 'low': low, 'high': high, 'seeds': [1]}, share) == said
    assert verdict(claim, {'mean': 0.3, 'seeds': [1]}, share) == 'open: fewer than 5 pairs'
    assert verdict(claim, None, share) == 'open: fewer than 5 pairs'
