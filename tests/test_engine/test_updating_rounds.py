"""Rep, Dep and budget of an update, in real trainings."""
import statistics
from pathlib import Path
from typing import Any

import pytest
from mmengine.runner import Runner

from mmdyrep.fileio import read_json
from tests.dyrep_runs import AroundUpdates, dyrep_config, history, log_lines, trained, updates
from tests.runs import needs_images

pytestmark = needs_images


def test_num_grow_takes_the_first_of_the_ranking(tmp_path: Path) -> None:
    runner = trained(dyrep_config(dict(metric='snip', num_grow=3, dep=None), images=64), tmp_path)
    for entry in updates(tmp_path):
        assert [item['op'] for item in entry['grown']] == [name for name, _ in entry['scores'][:3]]
    assert len(runner.model.backbone.structure['ops']) == 12


def test_growth_ends_with_the_candidates(tmp_path: Path) -> None:
    cfg = dyrep_config(dict(metric='snip', num_grow=5, dep=None), images=64, backbone=dict(
        exclude=('layer1', 'layer2'), max_depth=1))
    trained(cfg, tmp_path)
    assert [len(entry['grown']) for entry in updates(tmp_path)] == [1, 0, 0, 0]
    assert any('[epoch 3]: structure unchanged' in line for line in log_lines(tmp_path))


@pytest.mark.parametrize('ratio', [1.1, 1.5])
def test_budget_is_kept_and_dear_ops_are_passed_over_for_the_next(tmp_path: Path, ratio: float) -> None:
    cfg = dyrep_config(dict(metric='random', num_grow=4, dep=None, max_macs_ratio=ratio), images=64)
    trained(cfg, tmp_path)
    content = history(tmp_path)
    budget = ratio * content['start']['macs']['backbone']
    for before, entry in zip([content['start'], *content['updates']], content['updates']):
        assert entry['macs']['backbone'] <= budget
        ranked = [name for name, _ in entry['scores']]
        grown = [item['op'] for item in entry['grown']]
        assert grown + entry['over_budget'] == sorted(grown + entry['over_budget'], key=lambda n: n in entry[
            'over_budget'])
        taken = sorted(grown + entry['over_budget'], key=ranked.index)
        assert taken == ranked[:len(taken)] and (len(grown) == 4 or len(taken) == len(ranked))
        assert entry['macs']['backbone'] >= before['macs']['backbone']
    # something cheaper came after something passed over
    assert any(item['op'] in [name for name, _ in entry['scores']][len(entry['grown']):]
               for entry in content['updates'] if entry['over_budget'] for item in entry['grown'])
    assert any('passed over, beyond max_macs_ratio: ' in line for line in log_lines(tmp_path))


class Watch(AroundUpdates):
    """Importance of branches, read off the model before each update."""

    def __init__(self) -> None:
        super().__init__(self.look, lambda runner: None)
        self.seen: list = []

    def look(self, runner: Runner) -> None:
        backbone = runner.model.backbone
        self.seen.append({name: {branch: backbone.get_submodule(f'{name}.branches.{branch}.bn').weight.abs().mean()
                                 .item() for branch in branches}
                          for name, branches in backbone.structure['ops'].items()})


@pytest.mark.parametrize('dep, cuts', [(dict(threshold=0.0003), True), (dict(threshold=10.), False), (None, False),
                                       (dict(threshold=0.0003, bound=1e-6), False)], ids=str)
def test_dep_cuts_what_lies_below_the_mean(tmp_path: Path, dep: Any, cuts: bool) -> None:
    watch = Watch()
    cfg = dyrep_config(dict(metric='snip', dep=dep), backbone=dict(exclude=('layer1', 'layer2.1')))
    trained(cfg, tmp_path, [watch])
    done = updates(tmp_path)
    assert any(entry['cut'] for entry in done) == cuts
    for gammas, entry in zip(watch.seen, done):
        structure = read_json(tmp_path / 'dyrep' / f'structure_{entry["epoch"]}.json')['ops']
        changed = [item['op'] for item in entry['grown']]
        for item in entry['cut']:
            if any(name.startswith(item['op']) for name in changed):
                continue  # Rep within the block has changed the original's gamma
            mean = gammas[item['op']]
            expected = {name: value / mean['kxk'] for name, value in mean.items() if name != 'kxk'}
            assert item['importance'] == pytest.approx(expected, rel=1e-5)
        for item in entry['cut']:
            left = structure.get(item['op'])
            if left is not None:  # an outer block may have lost the whole branch since
                assert set(left) == {'kxk', *item['importance']} - set(item['branches']) and len(left) > 1
        assert entry['drift'] < 1e-5


def test_the_history_tells_the_deviation_that_was_compared(tmp_path: Path) -> None:
    trained(dyrep_config(dict(metric='snip', dep=dict(threshold=0.0, unbiased=True)), images=64), tmp_path)
    content = history(tmp_path)
    cut = [item for entry in content['updates'] for item in entry['cut']]
    assert content['settings']['unbiased'] and cut
    for item in cut:
        assert item['std'] == pytest.approx(statistics.stdev(item['importance'].values()))
