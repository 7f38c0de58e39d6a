"""Metrics that look at the kept batches, in real trainings: grasp and vote, and scores by branch."""
import copy
import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from mmdyrep import DyRepHook
from mmdyrep.dynamics import METRICS, Key, Moment, Op, Saliency
from mmdyrep.fileio import read_json
from tests.dyrep_runs import dyrep_config, history, log_lines, trained, updates
from tests.processes import dist_train, ranks_config, read_ranks
from tests.resuming import dyrep_config as resumed_config, killed_and_resumed
from tests.runs import differences, needs_images
from tests.steps import Call, dyrep_hook, runner_of

pytestmark = needs_images


@OPTIM_WRAPPERS.register_module()
class HalfOnCPU(OptimWrapper):
    """Mixed precision in bfloat16, which a CPU can do."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def own_score(runner: Runner) -> Dict[str, float]:
    """-theta * H g by the full second derivative of a double copy, mean over the batches kept."""
    model = copy.deepcopy(runner.model).double().train()
    names = [name for name in model.backbone.candidates() if model.backbone.get_submodule(name).weight.requires_grad]
    parameters = [value for value in model.parameters() if value.requires_grad]
    totals = dict.fromkeys(names, 0.0)
    kept = dyrep_hook(runner).batches.all()
    assert len(kept) == 2
    for batch in kept:
        data = model.data_preprocessor(batch, True)
        loss = model(data['inputs'].double(), data['data_samples'], mode='loss')['loss']
        half = sum(slope.square().sum() for slope in torch.autograd.grad(loss, parameters, create_graph=True)) / 2
        for name in names:
            weight = model.backbone.get_submodule(name).weight
            product, = torch.autograd.grad(half, weight, retain_graph=True)
            totals[name] -= (product * weight).sum().item() / len(kept)
    return totals


CASES: Dict[str, Dict[str, Any]] = dict(
    plain=dict(), half=dict(optim_wrapper=dict(type='HalfOnCPU')),
    accumulated=dict(optim_wrapper=dict(accumulative_counts=3)),
    frozen=dict(model=dict(backbone=dict(backbone=dict(frozen_stages=1)))),
    averaged=dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)]))


@pytest.mark.parametrize('case', CASES)
def test_grasp_is_that_of_the_kept_batches_in_the_precision_of_the_weights(tmp_path: Path, case: str) -> None:
    cfg = dyrep_config(dict(metric='grasp'), images=96)
    cfg.merge_from_dict(dict(model=dict(head=dict(dropout_rate=0.0))))
    cfg.train_cfg.max_epochs, cfg.param_scheduler = 2, []
    cfg.merge_from_dict(CASES[case])
    expected: List[Dict[str, float]] = []
    trained_ = runner_of(cfg, tmp_path, Call(before=lambda runner: expected.append(own_score(runner))))
    trained_.train()
    entries = dyrep_hook(trained_).history.updates
    for entry, wanted in zip(entries, expected):
        found = dict(entry['scores'])
        # what is behind frozen layers has scores of 1e-9
        near = 2e-2 if case == 'frozen' else 2e-3
        assert found == pytest.approx(wanted, rel=near, abs=1e-4 * max(map(abs, wanted.values())))
        assert entry['scoring']['seconds'] > 0 and entry['drift'] < 1e-5
    assert len(entries) == 2 and any('.branches.' in name for name in dict(entries[1]['scores']))


def test_a_run_tells_its_votes(tmp_path: Path) -> None:
    trained(dyrep_config(dict(metric=dict(type='vote', metrics=['grad_norm', 'snip', 'snip_bn'])), images=64), tmp_path)
    for entry in updates(tmp_path):
        votes = entry['scoring']['votes']
        assert list(votes) == ['grad_norm', 'snip', 'snip_bn'] and entry['metric'] == 'vote'
        counts = {op: list(votes.values()).count(op) for op in votes.values()}
        first, score = entry['scores'][0]
        assert counts[first] == max(counts.values()) == math.floor(score)
        assert entry['grown'][0]['op'] == first
    settings = history(tmp_path)['settings']
    assert settings['metric'] == 'vote' and settings['metric_options']['metrics'] == ['grad_norm', 'snip', 'snip_bn']
    assert any('votes: grad_norm for ' in line for line in log_lines(tmp_path))


class ByBranch(Saliency):
    """Prefers an average in conv1, then a 1x1 convolution in the first layer."""

    def score(self, op: Op) -> None:
        return None

    def scores(self, names: List[str], moment: Moment) -> Dict[Key, float]:
        scores: Dict[Key, float] = {('conv1', '1x1_avg'): 3.0, ('layer1.0.conv1', '1x1'): 2.0,
                                    ('layer1.0.conv2', '1x1'): math.nan}
        return {key: score for key, score in scores.items() if key[0] in names}


def test_a_score_may_be_of_an_op_and_a_branch(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(METRICS, 'by_branch', ByBranch)
    cfg = dyrep_config(dict(metric='by_branch', dep=None, max_macs_ratio=1.3), images=64)
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    cfg.train_cfg.max_epochs, cfg.param_scheduler = 3, []
    runner = trained(cfg, tmp_path)
    first, second, third = updates(tmp_path)
    assert first['scores'] == [['conv1 by 1x1_avg', 3.0], ['layer1.0.conv1 by 1x1', 2.0]]
    assert first['unscored'] == ['layer1.0.conv2 by 1x1']
    assert first['grown'] == [{'op': 'conv1', 'score': 3.0, 'branches': ['1x1_avg']}]
    assert second['grown'][0]['branches'] == ['1x1'] and not third['grown']
    assert all(entry['drift'] < 1e-5 and entry['drift_ema'] < 1e-5 for entry in (first, second))
    assert runner.model.backbone.structure['ops'] == {
        'conv1': ['kxk', '1x1_avg'], 'layer1.0.conv1': ['kxk', '1x1']}


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:
        return slope * 2


def test_a_model_without_second_derivatives_is_refused_before_its_first_step(tmp_path: Path) -> None:
    runner = runner_of(dyrep_config(dict(metric='vote'), images=256), tmp_path)
    forward = runner.model.neck.forward
    runner.model.neck.forward = lambda x: tuple(OnceOnly.apply(part) for part in forward(x))
    with pytest.raises(RuntimeError, match='the metric grasp needs the second derivative of the loss'):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize('hook, words', [
    (dict(metric='snap'), "DyRepHook: unknown metric 'snap'; there are .*'vote'"),
    (dict(metric=dict(type='snip', two_batches=True)), "DyRepHook: metric 'snip' with the settings"),
    (dict(metric=dict(type='grasp', two_batches=True), calibration_batches=1), 'needs 2 batches at each update'),
    (dict(metric=dict(type='grasp', two_batches=True), by_epoch=False, interval=1), 'and interval, now 1 iterations')])
def test_metrics_that_can_not_work_are_refused(hook: Dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DyRepHook(**hook)


@pytest.mark.slow
@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_vote_goes_on_after_a_kill_with_the_same_bytes(tmp_path: Path, by_epoch: bool) -> None:
    cfg = resumed_config(by_epoch=by_epoch, ema=dict(momentum=0.1), hook=dict(
        metric=dict(type='vote', metrics=['snip', dict(type='grasp', two_batches=True), 'synflow'])))
    # killed at 27, an iteration loop goes on from 25, in the middle of an interval
    assert killed_and_resumed(Config(cfg.to_dict()), tmp_path, **({} if by_epoch else dict(kill_at=27))) == []
    entries = read_json(tmp_path / 'resumed' / 'dyrep' / 'history.json')['updates']
    assert [set(entry['scoring']['votes']) for entry in entries] == [{'snip', 'grasp', 'synflow'}] * 4


@pytest.mark.slow
def test_two_ranks_choose_the_same_op(tmp_path: Path) -> None:
    cfg = ranks_config(tmp_path / 'ranks', ema=dict(momentum=0.1), hook=dict(metric='vote'))
    done = dist_train(cfg, tmp_path / 'run')
    assert done.returncode == 0, done.stdout[-3000:]
    left, right = read_ranks(tmp_path / 'ranks')
    assert differences(left['epochs'], right['epochs']) == []
    assert len(left['wrappers']) == 3
    entries = read_json(tmp_path / 'run' / 'dyrep' / 'history.json')['updates']
    assert [len(entry['grown']) for entry in entries] == [1, 1]
    assert all(set(entry['scoring']['votes']) == {'grad_norm', 'snip', 'grasp', 'synflow'} for entry in entries)
