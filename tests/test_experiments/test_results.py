"""Means, deviations and intervals over seeds, and the report that shows them."""
import json
import math

import numpy as np
import pytest

from mmdyrep.experiments import Experiment, Run
from mmdyrep.experiments.report import write_report
from mmdyrep.experiments.results import summary, table_of


def test_interval_is_students():
    values = [90.39, 90.30, 90.41]
    found = summary(values)
    assert found['mean'] == pytest.approx(np.mean(values)) and found['number'] == 3
    assert found['deviation'] == pytest.approx(np.std(values, ddof=1))
    # 4.303: the 97.5 % quantile of two degrees of freedom
    assert found['interval'] == pytest.approx(4.303 * np.std(values, ddof=1) / math.sqrt(3))


def test_one_seed_has_no_interval():
    assert summary([90.0]) == {'mean': 90.0, 'number': 1}


def test_the_interval_holds_the_mean_of_a_normal_in_95_of_100_draws():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(4000):
        found = summary(list(random.normal(3, 2, 5)))
        inside += abs(found['mean'] - 3) <= found['interval']
    assert 0.94 < inside / 4000 < 0.96


def runs(seeds=(1, 2, 3)):
    return [dict(row=row, column='Fashion-MNIST', seed=seed, value=value + seed / 10, macs=macs, parameters=2e5,
                 seconds=60.0, **more)
            for row, value, macs, more in (('Origin', 89.0, 1e6, {}), ('DyRep', 90.0, 2e6, dict(grown=15, cut=4)))
            for seed in seeds]


EXPERIMENT = Experiment('Table 0: a test', 'Which is better?', full=[Run('Origin', 'CIFAR-10', 'a.py', {}, dict(
    value=94.68, macs=313e6)), Run('DyRep', 'CIFAR-10', 'b.py')], small=[])


def test_seeds_are_taken_together_in_the_order_of_the_rows():
    table = table_of(runs())
    assert [entry['row'] for entry in table] == ['Origin', 'DyRep'] and table[0]['seeds'] == [1, 2, 3]
    assert table[1]['value']['mean'] == pytest.approx(90.2) and table[1]['value']['values'] == [90.1, 90.2, 90.3]
    assert 'grown' not in table[0] and table[1]['grown']['mean'] == 15


def test_report_has_ours_theirs_what_failed_and_what_waits(tmp_path):
    paths = write_report(tmp_path, 'table0', EXPERIMENT, runs(), {'DyRep, seed 4': 'out of | memory'},
                         ['DyRep, seed 5'], 'python tools/run_experiment.py table0', {'train_cfg.max_epochs': 2})
    page, data = paths[0].read_text(), json.loads(paths[1].read_text())
    assert [path.name for path in paths] == ['table0.md', 'table0.json', 'table0.png']
    assert paths[2].stat().st_size > 5000
    row = next(line for line in page.splitlines() if line.startswith('| DyRep'))
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[2] == '90.20 ± 0.10' and cells[3] == '89.95 to 90.45' and cells[-1] == '-'
    origin = next(line for line in page.splitlines() if line.startswith('| Origin'))
    assert '94.68 (313 M)' in origin and "**the paper's**, CIFAR-10" in page
    assert 'DyRep, seed 5' in page and 'out of | memory' in page and 'train_cfg.max_epochs=2' in page
    assert data['failed'] and data['waiting'] == ['DyRep, seed 5'] and len(data['runs']) == 6
