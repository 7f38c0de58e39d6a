"""An update that moves the output is taken back as a whole, is not tried again, and the training goes on."""
import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from mmengine.runner import Runner

from mmdyrep.engine.ema import Averaged
from mmdyrep.reparam import Block
from mmdyrep.reparam.proof import Trial
from tests.resuming import dyrep_config, killed_and_resumed
from tests.runs import differences, needs_images
from tests.steps import Call, dyrep_hook, messages, runner_of
from tests.test_engine.test_updating import everything, short

OP = 'conv1'


def spoil(monkeypatch: Any, method: str = 'settle', wrong: float = 0.5) -> None:
    """Blocks of one input channel, as OP, come out wrong in the end: everything else is right."""
    right = getattr(Block, method)

    def broken(self: Block, *args: Any) -> Any:
        result = right(self, *args)
        if self.geometry.in_channels == 1:
            self.origin.bn.bias.data.add_(wrong)
        return result

    monkeypatch.setattr(Block, method, broken)
    monkeypatch.setattr(Trial, 'failures', lambda self: {})  # which would see it before the training


def prefer(runner: Runner, op: str = OP) -> None:
    """Let an op have the greatest score of all, whatever the gradients say."""
    saliency = dyrep_hook(runner).saliency
    scores = saliency.scores
    saliency.scores = lambda names, moment: {
        name: 1e9 if name == op else value for name, value in scores(names, moment).items()}


@needs_images
@pytest.mark.parametrize('num_grow', [1, 2])
def test_it_is_undone_said_kept_in_the_history_and_the_next_op_grows(
        tmp_path: Path, caplog: Any, monkeypatch: Any, num_grow: int) -> None:
    spoil(monkeypatch)
    seen: List[Dict[str, Any]] = []
    runner = runner_of(short(epochs=2, num_grow=num_grow), tmp_path, Call(
        before=lambda runner: seen.append(everything(runner)), after=lambda runner: seen.append(everything(runner))))
    prefer(runner)
    lines = messages(runner, caplog)
    first, second = dyrep_hook(runner).history.updates
    assert first['undone']['op'] == OP and first['undone']['doing'] == 'expanding'
    assert first['undone']['drift'] > 1e-3 and first['undone']['of'] == "backbone's"
    assert first['grown'] == first['cut'] == [] and first['scores'][0][0] == OP
    assert differences(seen[0], seen[1]) == []
    assert len(second['grown']) == num_grow and 'undone' not in second
    assert second['scores'][0][0] == second['grown'][0]['op']
    assert second['scores'] and all(name != OP for name, _ in second['scores'])
    warning = next(line for line in lines if 'has been undone' in line)
    assert f'expanding {OP} is not tried again' in warning and '(tolerance 1e-03)' in warning
    content = json.loads((tmp_path / 'dyrep' / 'history.json').read_text())
    assert content['updates'][0]['undone'] == first['undone']


@needs_images
def test_a_right_formula_sets_off_nothing(tmp_path: Path, caplog: Any) -> None:
    runner = runner_of(short(epochs=1), tmp_path)
    prefer(runner)
    assert not [line for line in messages(runner, caplog) if 'has been undone' in line]
    assert dyrep_hook(runner).history.updates[0]['grown'][0]['op'] == OP


@needs_images
def test_an_output_that_is_no_number_any_more(tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    spoil(monkeypatch, wrong=float('nan'))
    runner = runner_of(short(epochs=2, ema=None), tmp_path)
    prefer(runner)
    assert any('is no finite number any more after expanding' in line for line in messages(runner, caplog))
    first, second = dyrep_hook(runner).history.updates
    assert first['undone']['drift'] is None and second['grown']


@needs_images
def test_branches_that_can_not_be_removed_stay(tmp_path: Path, monkeypatch: Any) -> None:
    spoil(monkeypatch, 'remove')
    runner = runner_of(short(epochs=5, ema=None, dep=dict(threshold=1e-9)), tmp_path)
    prefer(runner)
    runner.train()
    updates = dyrep_hook(runner).history.updates
    undone = [update['undone'] for update in updates if 'undone' in update]
    assert undone[0]['op'] == OP and undone[0]['doing'] == 'removing'
    assert len({what['op'] for what in undone}) == len(undone)
    assert not any(item['op'] == OP for update in updates for item in update['cut'])
    assert OP in runner.model.backbone.structure['ops']


@needs_images
def test_an_averaged_copy_that_moves(tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    follow = Averaged.expand

    def broken(self: Any, source: Any, name: str, branches: Any) -> None:
        follow(self, source, name, branches)
        self.backbone.get_submodule(name).origin.bn.bias.add_(1)

    monkeypatch.setattr(Averaged, 'expand', broken)
    seen: List[Dict[str, Any]] = []
    runner = runner_of(short(epochs=1), tmp_path, Call(
        before=lambda runner: seen.append(everything(runner)), after=lambda runner: seen.append(everything(runner))))
    warning, = [line for line in messages(runner, caplog) if 'has been undone' in line]
    assert "the averaged backbone's output moved" in warning
    assert differences(seen[0], seen[1]) == []


@needs_images
@pytest.mark.slow
def test_what_is_not_tried_again_survives_a_kill(tmp_path: Path) -> None:
    cfg = dyrep_config(ema=dict(momentum=0.1))
    cfg.custom_imports.imports.append('tests.spoiling')
    assert killed_and_resumed(cfg, tmp_path) == []
    updates = json.loads((tmp_path / 'resumed' / 'dyrep' / 'history.json').read_text())['updates']
    assert updates[0]['undone']['op'] == OP and all(update['grown'] for update in updates[1:])
    assert not any(OP == name for update in updates[1:] for name, _ in update['scores'])
