"""DyRepHook in real trainings: what grows, when, and what is said about it."""
import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdyrep import DyRepHook
from mmdyrep.fileio import read_json
from tests.dyrep_runs import dyrep_config, history, log_lines, runner_of, trained, updates
from tests.runs import differences, needs_images, small_config

pytestmark = needs_images


class Scores(Hook):
    """Sums of a score, computed from the gradients that the optimizer sees."""

    def __init__(self, score: Any) -> None:
        self.score = score
        self.sums: Dict[str, List[float]] = {}
        self.intervals: List[Dict[str, List[float]]] = []

    def before_train(self, runner: Runner) -> None:
        backbone = runner.model.backbone

        def look(*_: Any) -> None:
            for name in backbone.candidates():
                self.sums.setdefault(name, []).append(float(self.score(backbone, name)))

        runner.optim_wrapper.optimizer.register_step_pre_hook(look)

    def before_train_epoch(self, runner: Runner) -> None:
        self.intervals.append({})
        self.sums = self.intervals[-1]


def norm_of(name: str) -> str:
    head, _, last = name.rpartition('.')
    return f'{head}.{last.replace("conv", "bn")}'.lstrip('.')


FORMULAS = {
    'grad_norm': lambda net, name: net.get_submodule(name).weight.grad.square().sum().sqrt(),
    'snip': lambda net, name: (net.get_submodule(name).weight.grad * net.get_submodule(name).weight).abs().sum(),
    'synflow': lambda net, name: (net.get_submodule(name).weight.grad * net.get_submodule(name).weight).sum(),
    'snip_bn': lambda net, name: (net.get_submodule(norm_of(name)).weight.grad
                                  * net.get_submodule(norm_of(name)).weight).abs().sum(),
}


@pytest.mark.parametrize('metric', sorted(FORMULAS))
def test_each_interval_the_op_of_the_greatest_mean_score_grows(tmp_path: Path, metric: str) -> None:
    scores = Scores(FORMULAS[metric])
    # room for nested ops to come first: few ops beside them
    cfg = dyrep_config(dict(metric=metric, dep=None), backbone=dict(exclude=('layer1', 'layer2.1', 'layer2.0.conv2')))
    runner = trained(cfg, tmp_path, [scores])
    done = updates(tmp_path)
    assert [entry['epoch'] for entry in done] == [1, 2, 3, 4]
    for entry, sums in zip(done, scores.intervals):
        expected = {name: sum(values) / len(values) for name, values in sums.items()}
        assert all(len(values) == 8 for values in sums.values())
        assert dict(entry['scores']) == pytest.approx(expected, rel=1e-6)
        assert [item['op'] for item in entry['grown']] == [max(expected, key=expected.get)]
        assert entry['drift'] < 1e-5
    grown = [entry['grown'][0]['op'] for entry in done]
    assert len(set(grown)) == 4 and any('.branches.' in name for name in grown)
    assert set(runner.model.backbone.structure['ops']) == set(grown)


def test_random_metric_draws_anew_each_update_and_is_repeatable(tmp_path: Path) -> None:
    cfg = dyrep_config(dict(metric='random', dep=None), images=64)
    for name in 'ab':
        trained(cfg, tmp_path / name)
    first, second = updates(tmp_path / 'a'), updates(tmp_path / 'b')
    assert [entry['scores'] for entry in first] == [entry['scores'] for entry in second]
    assert len({tuple(value for _, value in entry['scores']) for entry in first}) == 4


@pytest.mark.parametrize('settings, expected', [
    (dict(interval=2), [2, 4, 6]),  # the last epoch too
    (dict(interval=4), [4]),
    (dict(interval=2, begin=1), [3, 5]),
    (dict(interval=1, begin=4), [5, 6]),
    (dict(interval=1, end=2), [1, 2]),
    (dict(interval=2, begin=1, end=4), [3]),
    (dict(interval=7), []),
], ids=str)
def test_epochs_of_updates(tmp_path: Path, settings: Dict[str, int], expected: List[int]) -> None:
    cfg = dyrep_config(dict(settings, metric='random'), images=64)
    cfg.train_cfg.max_epochs = 6
    trained(cfg, tmp_path)
    assert [(entry['epoch'], entry['iter']) for entry in updates(tmp_path)] == [(e, 2 * e) for e in expected]
    assert {path.name for path in (tmp_path / 'dyrep').iterdir()} == {
        'history.json', *(f'structure_{e}.json' for e in expected)}


@pytest.mark.parametrize('settings, expected', [
    (dict(interval=5), [5, 10, 15]),
    (dict(interval=4), [4, 8, 12, 16]),
    (dict(interval=3, begin=2, end=12), [5, 8, 11]),
], ids=str)
def test_iterations_of_updates(tmp_path: Path, settings: Dict[str, int], expected: List[int]) -> None:
    cfg = dyrep_config(dict(settings), by_epoch=False)
    cfg.train_cfg.max_iters = 16
    trained(cfg, tmp_path)
    assert [entry['iter'] for entry in updates(tmp_path)] == expected
    assert history(tmp_path)['iterations'] == 16
    assert any(f'[iter {expected[0]}]: expanded' in line for line in log_lines(tmp_path))
    assert all((tmp_path / 'dyrep' / f'structure_{i}.json').is_file() for i in expected)


def test_scores_are_of_the_interval_alone(tmp_path: Path) -> None:
    scores = Scores(FORMULAS['snip'])
    cfg = dyrep_config(dict(metric='snip', interval=1, begin=2), images=128)
    trained(cfg, tmp_path, [scores])
    for entry, sums in zip(updates(tmp_path), scores.intervals[2:]):
        assert dict(entry['scores']) == pytest.approx({key: sum(v) / len(v) for key, v in sums.items()}, rel=1e-6)


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_run_whose_updates_never_come_is_the_plain_one(tmp_path: Path, by_epoch: bool) -> None:
    plain = trained(small_config(by_epoch, images=128), tmp_path / 'plain')
    other = trained(dyrep_config(dict(begin=1000), by_epoch, images=128), tmp_path / 'dyrep')
    assert differences(dict(plain.model.state_dict()), dict(other.model.state_dict())) == []
    assert differences(plain.optim_wrapper.state_dict(), other.optim_wrapper.state_dict()) == []
    assert updates(tmp_path / 'dyrep') == []


# ---------------------------------------------------------------------- what is said


def test_log_and_scalars(tmp_path: Path) -> None:
    cfg = dyrep_config(dict(dep=dict(threshold=0.0003), metric='snip_bn'), backbone=dict(exclude=('layer2', )))
    trained(cfg, tmp_path)
    done, lines = updates(tmp_path), log_lines(tmp_path)
    assert lines[0].startswith('DyRep: 5 ops can be expanded, ranked by snip_bn: conv1, layer1.0.conv1')
    assert any(line.startswith('DyRep: 4 skipped, excluded: layer2.0.conv1') for line in lines[:4])
    assert 'DyRep: 1 skipped, kernel 1x1: layer2.0.downsample.0' in lines[:4]
    assert sum(len(entry['cut']) for entry in done)
    for entry in done:
        own = [line for line in lines if f'[epoch {entry["epoch"]}]' in line]
        expanded, removed = ([line for line in own if f': {word} ' in line] for word in ('expanded', 'removed'))
        assert len(own) == len(entry['grown']) + len(entry['cut']) + 1
        for item, line in zip(entry['grown'], expanded):
            assert f'expanded {item["op"]} by {", ".join(item["branches"])} (snip_bn {item["score"]:.3g}, next ' in line
        for item, line in zip(entry['cut'], removed):
            assert line.split(' from ')[1].startswith(item['op'] + ' (importance: mean ')
            assert all(f'{name} {item["importance"][name]:.3g}' in line for name in item['branches'])
        assert 'MACs' in own[-1] and 'drift' in own[-1]
    assert lines[-1].startswith('DyRep: 4 updates, 4 ops expanded, ')

    scalars = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    # in the lines of the training itself, an epoch each, from the next one on
    assert [line['step'] for line in scalars] == [8, 16, 24, 32] and all('lr' in line for line in scalars)
    costs = [history(tmp_path)['start'], *done]
    assert [line['dyrep/macs'] for line in scalars] == [cost['macs']['model'] for cost in costs[:4]]
    assert [line['dyrep/parameters'] for line in scalars] == [cost['parameters']['model'] for cost in costs[:4]]
    assert [line['dyrep/blocks'] for line in scalars] == [0, *(len(read_json(
        tmp_path / 'dyrep' / f'structure_{epoch}.json')['ops']) for epoch in (1, 2, 3))]


class Spoil(Hook):
    """A gradient that is no number, put right before the step or not."""

    def __init__(self, repaired: bool) -> None:
        self.repaired = repaired

    def before_train(self, runner: Runner) -> None:
        weight = runner.model.backbone.conv1.weight
        weight.register_hook(lambda grad: grad * math.nan)
        if self.repaired:
            # registered after DyRepHook's, which looks first
            runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: setattr(weight, 'grad', None))


@pytest.mark.parametrize('repaired', [True, False])
def test_ops_without_a_finite_score_are_named_and_not_taken(tmp_path: Path, repaired: bool) -> None:
    cfg = dyrep_config(dict(metric='grad_norm', dep=None), images=64)
    del cfg.optim_wrapper['clip_grad']
    runner = trained(cfg, tmp_path, [Spoil(repaired)])
    for entry in updates(tmp_path):
        assert 'conv1' in entry['unscored'] and all(item['op'] != 'conv1' for item in entry['grown'])
        assert len(entry['grown']) == repaired  # a run that has diverged grows no more, and ends with its files
    assert any('no finite score, not considered: conv1' in line for line in log_lines(tmp_path))
    assert len(runner.model.backbone.structure['ops']) == 4 * repaired


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize('settings, message', [
    (dict(metric='magic'), r"unknown metric 'magic'; there are \['grad_norm', 'grasp', 'random', 'snip'"),
    (dict(interval=0), 'interval must be a whole number of at least 1, got 0'),
    (dict(interval=2.5), 'interval must be a whole number'),
    (dict(interval=True), 'interval must be a whole number'),
    (dict(begin=-1), 'begin must be a whole number of at least 0'),
    (dict(begin=3, end=3), 'end must be a whole number of at least 4, got 3'),
    (dict(num_grow=0), 'num_grow must be'),
    (dict(calibration_batches=0), 'calibration_batches must be'),
    (dict(max_macs_ratio=1), 'max_macs_ratio is a multiple of the plain backbone, above 1; got 1'),
    (dict(dep=dict()), 'dep takes threshold'),
    (dict(dep=dict(threshold=-1)), 'dep takes threshold'),
    (dict(dep=dict(threshold=.02, lamda=1)), "dep takes threshold .*'lamda': 1"),
], ids=str)
def test_wrong_settings(settings: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DyRepHook(**settings)


def refused(cfg: Any, folder: Path, message: str, change: Any = lambda runner: None) -> None:
    runner = runner_of(cfg, folder)
    change(runner)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0 and not (folder / 'dyrep').exists()
    assert differences(before, dict(runner.model.state_dict())) == []


def test_no_wrapped_backbone(tmp_path: Path) -> None:
    cfg = dyrep_config({})
    cfg.model.backbone = cfg.model.backbone.backbone
    refused(cfg, tmp_path, r"the model has no DyRepBackbone. Wrap its backbone: backbone=dict\(type='DyRepBackbone'")


def test_two_wrapped_backbones(tmp_path: Path) -> None:
    refused(dyrep_config({}), tmp_path, r"has 2 DyRepBackbones \(\['backbone', 'second'\]\)",
            lambda runner: setattr(runner.model, 'second', deepcopy(runner.model.backbone)))


def test_nothing_to_expand(tmp_path: Path) -> None:
    cfg = dyrep_config({}, backbone=dict(exclude=('conv1', 'layer1', 'layer2')))
    refused(cfg, tmp_path, r'no op of the backbone can be expanded: 9 x excluded \(conv1, ...\); 1 x kernel 1x1')


@pytest.mark.parametrize('by_epoch, loop', [(True, 'IterBasedTrainLoop'), (False, 'EpochBasedTrainLoop')])
def test_by_epoch_that_does_not_fit_the_loop(tmp_path: Path, by_epoch: bool, loop: str) -> None:
    cfg = dyrep_config(dict(by_epoch=by_epoch), by_epoch=not by_epoch)
    refused(cfg, tmp_path, f'by_epoch={by_epoch} does not fit {loop}; give by_epoch={not by_epoch}')


def test_an_augmented_checkpoint_without_the_hook_ends_before_its_first_step(tmp_path: Path) -> None:
    grown = trained(dyrep_config(dict(dep=None), images=64), tmp_path / 'grown')
    path = tmp_path / 'grown.pth'
    torch.save(dict(state_dict=grown.model.state_dict()), path)
    runner = runner_of(dyrep_config(None, images=64, load_from=str(path)), tmp_path / 'without')
    with pytest.raises(RuntimeError, match='are not in the optimizer.*Add DyRepHook'):
        runner.train()
    assert all(torch.equal(value, runner.model.get_parameter(name)) for name, value in grown.model.named_parameters())
    other = trained(dyrep_config(dict(dep=None), images=64, load_from=str(path)), tmp_path / 'with')
    start, before = history(tmp_path / 'with')['start'], history(tmp_path / 'grown')['updates'][-1]
    assert start['macs'] == before['macs'] and start['parameters'] == before['parameters']
    assert len(other.model.backbone.structure['ops']) == 8
