"""Table and picture of what became of branches."""
from typing import Any, Dict

import pytest

from mmdyrep.experiments.learning import draw_learning, learning_lines
from mmdyrep.experiments.studies import STUDIES


def item(op: str, branch: str, age: int, cosine: Any, share: float) -> Dict[str, Any]:
    return {'op': op, 'branch': branch, 'age': age, 'cosine': cosine, 'share': share}


RUNS = [
    {'row': 'a', 'seed': 1, 'learned': [
        item('x', 'kxk', 9, 0.1, 0.7), item('x', '1x1', 9, 0.2, 0.2), item('x', 'kx1', 9, 0.4, 0.1),
        item('y', 'kxk', 2, 0.9, 0.96), item('y', '1x1', 2, 0.8, 0.03), item('y', 'residual', 2, None, 0.01)]},
    {'row': 'b', 'seed': 1, 'learned': [item('x', 'kxk', 9, None, 0.5), item('x', '1x1', 9, -0.5, 0.5)]}]


def test_medians_by_age() -> None:
    lines = learning_lines(RUNS, groups=3)
    assert lines[2:5] == [
        '| a | 0 to 2 | 2 | 2.0e-01 | 1.0e-01 | 2 | 4 |',
        '| a | 7 to 9 | 2 | 7.0e-01 | 9.0e-01 | 15 | 30 |',
        '| b | 7 to 9 | 1 | 1.5e+00 | - | 50 | 50 |']


@pytest.mark.parametrize('oldest', [0, 1, 2, 14])
def test_each_branch_is_in_one_group(oldest: int) -> None:
    runs = [{'row': 'a', 'seed': 1, 'learned': [item('x', '1x1', age, 0.5, 0.1) for age in range(oldest + 1)]}]
    rows = [line.split(' | ') for line in learning_lines(runs) if line.startswith('| a')]
    assert sum(int(row[2]) for row in rows) == oldest + 1


def test_a_mark_for_each_added_branch() -> None:
    figure = draw_learning('title', RUNS)
    numbers = [[len(line.get_xdata()) for line in axes.lines if line.get_label() in ('a', 'b')] for axes in figure.axes]
    assert numbers == [[3, 1], [3, 1]]


def test_runs_keep_all_their_checkpoints() -> None:
    for study in STUDIES.values():
        for run in study.small:
            assert run.learning == (run.options.get('default_hooks.checkpoint.max_keep_ckpts') == -1)
    assert sum(run.learning for run in STUDIES['learning_vgg16'].small) == 3
