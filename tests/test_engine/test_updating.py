"""An update that goes wrong: nothing is half done, nothing goes unsaid."""
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.runner import Runner

from mmdyrep.engine.ema import averaged_copies
from mmdyrep.engine.optimizer import scheduler_list
from mmdyrep.reparam import Block
from tests.resuming import dyrep_config
from tests.runs import differences, needs_images, small_config
from tests.steps import Call, dyrep_hook, messages, runner_of


def short(ema: Any = dict(momentum=0.1), epochs: int = 3, **hook: Any) -> Any:
    cfg = dyrep_config(ema=ema, images=96, hook=hook)
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6)]
    cfg.train_cfg.max_epochs = epochs
    return cfg


def everything(runner: Runner) -> Dict[str, Any]:
    """Bytes, objects and order of all that an update changes."""
    copy, = averaged_copies(runner)
    models = [runner.model, copy.model]
    optimizer = runner.optim_wrapper.optimizer
    return dict(
        weights=[{name: value.clone() for name, value in model.state_dict().items()} for model in models],
        modules=[[(name, id(module), module.training) for name, module in model.named_modules()] for model in models],
        parameters=[[(name, id(value)) for name, value in model.named_parameters()] for model in models],
        groups=[{key: [id(value) for value in item] if key == 'params' else item for key, item in group.items()}
                for group in optimizer.param_groups],
        optimizer=[(id(parameter), {key: value.clone() for key, value in state.items()})
                   for parameter, state in optimizer.state.items()],
        averaged={name: (value.data_ptr(), value.clone()) for name, value in copy.ema_model.avg_parameters.items()},
        schedulers=[scheduler.state_dict() for scheduler in scheduler_list(runner.param_schedulers)])


def failing(where: str, monkeypatch: Any, runner: Runner) -> None:
    """Let the update fail late: in the calibration after branches are in, in the copy, or in the optimizer."""
    def fail(*_: Any, **__: Any) -> None:
        raise ArithmeticError('broken on purpose')

    if where == 'calibration':
        monkeypatch.setattr(Block, 'settle', fail)
    elif where == 'copy':
        monkeypatch.setattr('mmdyrep.engine.ema.Averaged.expand', fail)
    elif where == 'removing':
        monkeypatch.setattr('mmdyrep.engine.ema._take_statistics', fail)
    else:
        monkeypatch.setattr('mmdyrep.engine.following.refresh_schedulers', fail)


@needs_images
@pytest.mark.parametrize('where', ['calibration', 'copy', 'removing', 'schedulers'])
def test_all_or_nothing(tmp_path: Path, monkeypatch: Any, where: str) -> None:
    seen: List[Dict[str, Any]] = []

    def before(runner: Runner) -> None:
        seen[:] = [everything(runner)]
        if len(dyrep_hook(runner).history.updates) == 1:
            failing(where, monkeypatch, runner)

    runner = runner_of(short(num_grow=2), tmp_path, Call(before=before))
    with pytest.raises(Exception) as caught:
        runner.train()
    assert 'broken on purpose' in str(caught.value)
    if where != 'schedulers':
        doing = 'removing' if where == 'removing' else 'expanding'
        assert str(caught.value).startswith(f'DyRep: {doing} ') and 'failed, the training is as it was' in str(
            caught.value)
    assert runner.model.backbone.structure['ops']
    assert differences(seen[0], everything(runner)) == []
    # and it goes on from there
    monkeypatch.undo()
    hook = dyrep_hook(runner)
    type(hook).after(hook, runner, 2)
    assert len(hook.history.updates) == 2 and hook.history.updates[1]['drift'] < 1e-5


@needs_images
@pytest.mark.parametrize('metric', ['random', 'synflow', 'snip_bn'])
def test_a_training_that_has_diverged_goes_on_as_without_dyrep(tmp_path: Path, caplog: Any, metric: str) -> None:
    def poison(runner: Runner) -> None:
        if runner.iter == 1:
            with torch.no_grad():
                next(runner.model.head.parameters()).fill_(float('nan'))

    cfg = short(epochs=2, metric=metric, ema=None)
    runner = runner_of(cfg, tmp_path / 'dyrep', Call(iteration=poison))
    lines = messages(runner, caplog)
    history = dyrep_hook(runner).history
    assert [update['grown'] + update['cut'] for update in history.updates] == [[], []]
    assert any('no finite score, not considered' in line for line in lines)
    assert history.updates[0]['unscored'] and history.updates[0]['drift'] is None
    plain = small_config(images=96)
    plain.param_scheduler, plain.train_cfg = cfg.param_scheduler, cfg.train_cfg
    twin = runner_of(plain, tmp_path / 'plain', Call(iteration=poison))
    twin.train()
    assert differences({**runner.model.state_dict()}, {**twin.model.state_dict()}) == []


@needs_images
def test_nan_scores_of_one_iteration_grow_nothing_and_disturb_nothing(tmp_path: Path) -> None:
    class Spoil(Call):
        """DyRep sees NaN in one iteration, the optimizer does not."""

        def before_train(self, runner: Runner) -> None:
            saliency = dyrep_hook(runner).saliency
            score = saliency.score
            saliency.score = lambda op: score(op) * (float('nan') if runner.iter == 0 else 1)

    runner = runner_of(short(epochs=2, metric='synflow', ema=None), tmp_path, Spoil())
    runner.train()
    first, second = dyrep_hook(runner).history.updates
    assert not first['grown'] and first['unscored'] and first['drift'] == 0
    assert second['grown'] and not second['unscored']


@needs_images
def test_a_nan_loss_in_an_interval_leaves_the_training_as_without_the_update(tmp_path: Path) -> None:
    class SpoilLoss(Call):
        """The loss of one iteration is NaN: the second of the second epoch."""

        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
            model = runner.model
            vars(model).pop('loss', None)
            if runner.iter == 4:
                loss = model.loss
                model.loss = lambda *args, **options: {
                    name: value * float('nan') for name, value in loss(*args, **options).items()}

    ends = {}
    for name, end in (('going', None), ('ended', 1)):
        runner = runner_of(short(metric='snip', ema=None, end=end), tmp_path / name, SpoilLoss())
        runner.train()
        ends[name] = dict(weights={**runner.model.state_dict()}, optimizer=runner.optim_wrapper.state_dict())
        updates = dyrep_hook(runner).history.updates
        assert len(updates) == (3 if end is None else 1) and updates[0]['grown']
        assert all(not update['grown'] and not update['cut'] and update['unscored'] for update in updates[1:])
    assert differences(ends['going'], ends['ended']) == []
