"""Candidates follow requires_grad; an interval in which nothing was scored says why."""
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner

from tests.steps import dyrep_hook, messages
from tests.strange import Model, grown, runner_for


class Thaw(Hook):
    """Freezes the backbone when the training begins, and thaws parts of it in front of iterations."""

    def __init__(self, when: Dict[int, Any], freeze: Any = ('0', '1', '3', '4', '6', '7')) -> None:
        self.when, self.freeze = when, freeze

    def before_train(self, runner: Runner) -> None:
        self.set(runner, self.freeze, False)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.set(runner, self.when.get(runner.iter, ()), True)

    @staticmethod
    def set(runner: Runner, parts: Any, learns: bool) -> None:
        for part in parts:
            runner.model.backbone.get_submodule(part).requires_grad_(learns)


class Counts(Hook):
    """Scores of each op that were read in the intervals."""

    priority = 79

    def __init__(self) -> None:
        self.seen: List[Dict[str, int]] = []

    def after_train_epoch(self, runner: Runner) -> None:
        self.seen.append(dict(dyrep_hook(runner).saliency.counts))


@pytest.mark.parametrize('frozen_before', [False, True], ids=['by a hook', 'from the start'])
def test_a_backbone_that_is_thawed_in_stages_grows_what_learns(tmp_path: Path, caplog: Any,
                                                               frozen_before: bool) -> None:
    model, counts = Model(max_depth=1), Counts()
    if frozen_before:
        model.backbone.requires_grad_(False)
    # the last layers in the middle of the second epoch, the first at the start of the fourth
    hooks = [Thaw({4: ['6', '7'], 9: ['0', '1']}), counts]
    runner = runner_for(model, tmp_path, hooks=hooks, epochs=4)
    lines = messages(runner, caplog)
    assert [table.get('6') for table in counts.seen] == [None, 2, None, None]
    assert counts.seen[3] == {'0': 3}
    assert grown(runner) == ['6', '0']
    first, second, third, fourth = dyrep_hook(runner).history.updates
    assert 'all 3 ops that could be expanded are frozen' in first['why_unscored'] and not first['grown']
    # 6 is a block by then and 0 and 3 are frozen
    assert 'all 2 ops that could be expanded are frozen' in third['why_unscored']
    assert 'why_unscored' not in second and 'why_unscored' not in fourth
    warnings = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert any('DyRep [epoch 1]: nothing was scored' in line and 'frozen' in line for line in warnings)
    assert frozen_before == any('3 ops are frozen' in line for line in lines)


def test_an_op_frozen_in_the_middle_of_an_interval_does_not_grow(tmp_path: Path) -> None:
    class Freeze(Hook):
        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
            if runner.iter == 1:
                Thaw.set(runner, ['0', '3'], False)

    runner = runner_for(Model(), tmp_path, hooks=[Freeze()], epochs=1)
    runner.train()
    assert grown(runner) == ['6']


def why(tmp_path: Path, caplog: Any, hooks: Any = (), **options: Any) -> str:
    runner = runner_for(Model(), tmp_path, hooks=hooks, **options)
    lines = messages(runner, caplog)
    updates = dyrep_hook(runner).history.updates
    assert updates and not any(update['grown'] for update in updates)
    told = [line for line in lines if 'nothing was scored' in line]
    assert len(told) == len(updates) and updates[0]['why_unscored'] in told[0]
    return told[0]


def test_accumulation_over_more_than_an_interval(tmp_path: Path, caplog: Any) -> None:
    # the last iteration of a training steps in any case: the first interval of two has none
    runner = runner_for(Model(), tmp_path, epochs=2, optim_wrapper=dict(
        optimizer=dict(type='SGD', lr=0.05), accumulative_counts=50))
    lines = messages(runner, caplog)
    assert any('[epoch 1]: nothing was scored' in line and 'has not stepped' in line for line in lines)
    assert len(grown(runner)) == 1


def test_gradients_that_are_taken_away(tmp_path: Path, caplog: Any) -> None:
    @OPTIM_WRAPPERS.register_module(name='WithoutBackbone', force=True)
    class WithoutBackbone(OptimWrapper):
        def step(self, **kwargs: Any) -> None:
            for group in self.optimizer.param_groups:
                for parameter in group['params']:
                    if parameter.dim() == 4:
                        parameter.grad = None
            super().step(**kwargs)

    wrapper = dict(type='WithoutBackbone', optimizer=dict(type='SGD', lr=0.05))
    assert 'none of the 3 ops had a gradient when the optimizer stepped (3 times)' in why(
        tmp_path, caplog, epochs=1, optim_wrapper=wrapper)


def test_a_diverged_training(tmp_path: Path, caplog: Any) -> None:
    class Poison(Hook):
        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
            with torch.no_grad():
                runner.model.head.weight.fill_(float('nan'))

    assert 'no score, or no output of the backbone, was a finite number' in why(
        tmp_path, caplog, hooks=[Poison()], epochs=1)


def test_growth_that_has_come_to_its_end_is_no_warning(tmp_path: Path, caplog: Any) -> None:
    runner = runner_for(Model(max_depth=1), tmp_path, hook=dict(num_grow=3), epochs=2)
    assert not any('nothing was scored' in line for line in messages(runner, caplog))
    assert grown(runner) and not dyrep_hook(runner).history.updates[1]['grown']


def test_parameters_that_the_optimizer_did_not_know_are_stepped_once_a_change_finds_them(
        tmp_path: Path, caplog: Any) -> None:
    # mmengine's constructor leaves out what is frozen, where there is a paramwise_cfg
    model = Model()
    model.backbone[3].requires_grad_(False)
    wrapper = dict(optimizer=dict(type='SGD', lr=0.05), paramwise_cfg=dict(norm_decay_mult=1.0))
    wrapper['optimizer']['weight_decay'] = 1e-4
    runner = runner_for(model, tmp_path, hooks=[Thaw({3: ['3']}, freeze=())], epochs=3, optim_wrapper=wrapper)
    lines = messages(runner, caplog)
    assert any('1 parameters (backbone.3' in line and 'were not in the optimizer' in line for line in lines)
    known = {id(item) for group in runner.optim_wrapper.param_groups for item in group['params']}
    assert all(id(parameter) in known for parameter in model.parameters())
