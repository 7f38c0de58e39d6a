"""Averaged copies keep their function while the structure changes, and go on averaging."""
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.runner import Runner

from mmdyrep.engine.ema import averaged_copies
from tests.images import fashion
from tests.resuming import dyrep_config
from tests.runs import needs_images
from tests.steps import Call, dyrep_hook, runner_of

CLASSES = [dict(momentum=0.1), dict(momentum=0.1, update_buffers=True), dict(ema_type='StochasticWeightAverage'),
           dict(ema_type='MomentumAnnealingEMA', gamma=4), dict(momentum=0.1, begin_epoch=2),
           dict(momentum=0.1, begin_iter=5, interval=2), dict(momentum=0.1, priority=49)]


class Outputs:
    """Eval outputs of the averaged backbone on held-out images, in float64, around each update."""

    def __init__(self) -> None:
        self.before: List[torch.Tensor] = []
        self.after: List[torch.Tensor] = []
        self.distances: List[float] = []

    def hook(self) -> Call:
        return Call(lambda runner: self.before.append(self.output(runner)), self.look)

    @torch.no_grad()
    def output(self, runner: Runner) -> torch.Tensor:
        copy, = averaged_copies(runner)
        images, _ = fashion(16)
        modes = [(module, module.training) for module in copy.backbone.modules()]
        output = copy.backbone.eval()(images)[0].clone()
        for module, mode in modes:
            module.training = mode
        return output

    def look(self, runner: Runner) -> None:
        self.after.append(self.output(runner))
        copy, = averaged_copies(runner)
        source = dyrep_hook(runner)._backbone
        assert copy.backbone.structure == source.structure
        assert [name for name, _ in copy.backbone.named_parameters()] == [n for n, _ in source.named_parameters()]
        averaged, own = dict(copy.backbone.named_buffers()), dict(source.named_buffers())
        assert list(averaged) == list(own)
        listed = copy.ema_model.avg_parameters
        present = dict(copy.model.named_parameters())
        assert set(listed) >= set(present)
        assert all(listed[name].data_ptr() == tensor.data_ptr() for name, tensor in present.items())
        self.distances.append(max((present[f'backbone.{name}'] - tensor).abs().max().item()
                                  for name, tensor in source.named_parameters()))


@needs_images
@pytest.mark.parametrize('online, ema', [*((False, ema) for ema in CLASSES), (True, CLASSES[1]), (True, CLASSES[4])],
                         ids=lambda value: '-'.join(map(str, value.values())) if isinstance(value, dict) else None)
def test_function_is_kept_and_averaging_goes_on(tmp_path: Path, online: bool, ema: Dict[str, Any]) -> None:
    # the second update expands ops that lie in blocks, too
    cfg = dyrep_config(ema=ema, images=96, hook=dict(num_grow=3))
    cfg.model.backbone.online = online
    cfg.train_cfg.max_epochs = 3
    cfg.param_scheduler = []
    outputs = Outputs()
    runner = runner_of(cfg, tmp_path, outputs.hook())
    runner.train()
    updates = dyrep_hook(runner).history.updates
    assert len(outputs.after) == len(updates) == 3
    assert sum(len(update['grown']) for update in updates) == 9 and any(update['cut'] for update in updates)
    for before, after, update in zip(outputs.before, outputs.after, updates):
        assert (after - before).abs().max() < 1e-5 * before.abs().max()
        assert update['drift_ema'] < 1e-5
    # the copy is no copy of the source's weights
    assert outputs.distances[-1] > 1e-4


@needs_images
@pytest.mark.parametrize('online', [False, True])
def test_statistics_are_those_of_the_source(tmp_path: Path, online: bool) -> None:
    def same(runner: Runner) -> None:
        copy, = averaged_copies(runner)
        source = dyrep_hook(runner)._backbone
        for name, buffer in source.named_buffers():
            if not name.endswith('num_batches_tracked'):
                # EMAHook copies them at the next step: the function would jump there if they were others
                assert torch.equal(buffer, dict(copy.backbone.named_buffers())[name]), name

    cfg = dyrep_config(ema=dict(momentum=0.1), images=96, hook=dict(num_grow=3))
    cfg.model.backbone.online = online
    cfg.param_scheduler = []
    runner = runner_of(cfg, tmp_path, Call(after=same))
    runner.train()
    assert any(update['cut'] for update in dyrep_hook(runner).history.updates)


@needs_images
def test_load_from_an_augmented_checkpoint_gives_the_copy_its_structure(tmp_path: Path) -> None:
    cfg = dyrep_config(images=64)
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = 1
    first = runner_of(cfg, tmp_path / 'first')
    first.train()
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=first.model.state_dict()), path)
    cfg = dyrep_config(images=64, ema=dict(momentum=0.1), load_from=str(path))
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = 1

    class Loaded(Call):
        def before_train(self, runner: Runner) -> None:
            copy, = averaged_copies(runner)
            assert copy.backbone.structure == first.model.backbone.structure
            for name, value in first.model.state_dict().items():
                assert torch.equal(copy.model.state_dict()[name], value)

    runner = runner_of(cfg, tmp_path / 'second', Loaded())
    runner.train()
    assert dyrep_hook(runner).history.updates[0]['drift_ema'] < 1e-5


@needs_images
def test_a_hook_that_would_load_before_the_structure_is_there_is_refused(tmp_path: Path) -> None:
    runner = runner_of(dyrep_config(ema=dict(momentum=0.1, priority=20)), tmp_path)
    with pytest.raises(ValueError, match='EMAHook has priority 20, DyRepHook 30; it must come after'):
        runner.train()
