"""Further trainings as strange as people make them: each does what it does without DyRep, and grows."""
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import LOOPS, OPTIMIZERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from mmdyrep.dynamics import Calibration
from tests.runs import differences
from tests.steps import Call, dyrep_hook, messages
from tests.strange import Model, Stripes, body, grown, runner_for


class TwoViews(Model):
    """Sees each image and its negative, by two calls of the backbone."""

    def logits(self, inputs: Tensor) -> Tensor:
        return super().logits(inputs) + super().logits(3 - inputs)


def test_both_views_are_calibrated_on(tmp_path: Path) -> None:
    seen: Dict[str, Any] = {}

    def look(runner: Runner) -> None:
        branch = runner.model.backbone.get_submodule('0').branches['1x1']
        seen.update(mean=branch.bn.running_mean.clone(), weight=branch.conv.weight.clone())

    runner = runner_for(TwoViews(exclude=('3', '6')), tmp_path, epochs=1, hooks=[Call(after=look)])
    runner.train()
    batches = Stripes(24).images[8:].split(8)
    views = [view for batch in batches for view in (batch, 3 - batch)]
    wanted = sum(nn.functional.conv2d(view, seen['weight']).mean((0, 2, 3)) for view in views) / 4
    assert torch.allclose(seen['mean'], wanted, atol=1e-5)


class Sometimes(Model):
    """Every second batch goes by the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def forward(self, inputs: Any, kind: Any = None, mode: str = 'tensor') -> Any:
        self.number += 1
        if self.number % 2:
            return super().forward(inputs, kind, mode)
        return dict(loss=self.head.weight.square().sum())


def test_batches_that_go_by_the_backbone(tmp_path: Path) -> None:
    counts: List[Any] = []
    runner = runner_for(Sometimes(), tmp_path, hook=dict(calibration_batches=3), hooks=[Call(
        before=lambda runner: counts.append(set(dyrep_hook(runner).saliency.counts.values())))])
    runner.train()
    assert counts == [{2}, {1}, {2}] and len(grown(runner)) == 3 and runner.model.number == 9
    assert all(update['drift'] is None or update['drift'] < 1e-5 for update in dyrep_hook(runner).history.updates)


class Adversarial(Model):
    """Trains on images that the gradient has made harder, which takes a backward pass in between."""

    def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Tensor]:
        data = self.data_preprocessor(data, True)
        images = data['inputs'].clone().requires_grad_(True)
        self(images, data['kind'], mode='loss')['loss'].backward()
        harder = (images + 0.1 * images.grad.sign()).detach()
        optim_wrapper.zero_grad()
        loss = self(harder, data['kind'], mode='loss')['loss']
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


def test_adversarial_training(tmp_path: Path) -> None:
    runner = runner_for(Adversarial(), tmp_path)
    runner.train()
    assert len(grown(runner)) == 3
    assert all(update['drift'] < 1e-5 for update in dyrep_hook(runner).history.updates)


def test_a_step_that_fails_before_the_backbone_is_an_error() -> None:
    net = body()

    def fail(x: Tensor) -> None:
        raise ArithmeticError('in front')

    with pytest.raises(ArithmeticError, match='in front'):
        Calibration(net, fail, [torch.zeros(2, 3, 8, 8)], net)([net[1]])


@LOOPS.register_module(force=True)
class MicroBatches(EpochBasedTrainLoop):
    """Hands on what can be read once."""

    def run_iter(self, idx: int, data_batch: Any) -> None:
        super().run_iter(idx, (part for part in [data_batch]))


class Reading(Model):
    """Reads its micro batches."""

    def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Tensor]:
        return [super(Reading, self).train_step(part, optim_wrapper) for part in data][0]


def test_batches_that_can_be_read_once_are_refused_before_one_is_lost(tmp_path: Path) -> None:
    runner = runner_for(Reading(), tmp_path, cfg=dict(type='MicroBatches', max_epochs=2))
    with pytest.raises(RuntimeError, match='can be read once .generator.*hand on a list'):
        runner.train()
    assert runner.iter == 0


class Logging(Model):
    """Tells mmengine's message hub of each forward pass."""

    def logits(self, inputs: Tensor) -> Tensor:
        hub = MessageHub.get_current_instance()
        hub.update_scalar('train/brightness', float(inputs.mean()))
        hub.update_info('passes', hub.get_info('passes', 0) + 1)
        return super().logits(inputs)


def test_what_a_model_logs_is_that_of_the_training(tmp_path: Path) -> None:
    ends = []
    for name, hook in dict(plain=None, dyrep={}).items():
        runner = runner_for(Logging(), tmp_path / name, hook)
        runner.train()
        hub = runner.message_hub
        ends.append((hub.get_info('passes'), hub.get_scalar('train/brightness').data[0].tolist()))
    assert differences(*ends) == [] and ends[0][0] == 9


@OPTIMIZERS.register_module(force=True)
class Lookahead(torch.optim.Optimizer):
    """Slow weights around an inner optimizer, whose groups it takes."""

    def __init__(self, params: Any, lr: float) -> None:
        self.inner = torch.optim.SGD(params, lr=lr, momentum=0.9)
        super().__init__(self.inner.param_groups, dict(lr=lr))
        self.param_groups, self.steps = self.inner.param_groups, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inner.step()
        self.steps += 1
        for group in self.param_groups:
            for parameter in group['params']:
                slow = self.state[parameter].setdefault('slow', parameter.clone())
                if self.steps % 2 == 0:
                    parameter.copy_(slow.add_(parameter - slow, alpha=0.5))


def test_lookahead(tmp_path: Path) -> None:
    counts: List[Any] = []
    runner = runner_for(Model(), tmp_path, optim_wrapper=dict(optimizer=dict(type='Lookahead', lr=0.05)), hooks=[Call(
        before=lambda runner: counts.append(set(dyrep_hook(runner).saliency.counts.values())))])
    runner.train()
    assert counts == [{3}] * 3 and len(grown(runner)) == 3
    optimizer = runner.optim_wrapper.optimizer
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert set(optimizer.state) <= set(runner.model.parameters())


class Teacher(Model):
    """A plain copy follows the backbone by the order of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = body().requires_grad_(False)


def test_a_copy_that_may_follow_by_order_is_said(tmp_path: Path, caplog: Any) -> None:
    lines = messages(runner_for(Teacher(), tmp_path, epochs=1), caplog)
    told, = [line for line in lines if 'teacher has parameters of the same shapes' in line]
    assert 'zip' in told and 'EMAHook' in told
    lines = messages(runner_for(Model(), tmp_path / 'without', epochs=1), caplog)
    assert not any('parameters of the same shapes' in line for line in lines)


class EvaluatesInBetween(Hook):
    """Looks at the network in eval mode after each iteration, and forgets to switch back at the end of an epoch."""

    priority = 75

    def after_train_epoch(self, runner: Runner) -> None:
        runner.model.eval()


def test_a_network_left_in_eval_mode_is_calibrated_as_in_training(tmp_path: Path) -> None:
    ends = []
    for name, hooks in dict(straight=[], left=[EvaluatesInBetween()]).items():
        runner = runner_for(Model(), tmp_path / name, hooks=hooks)
        runner.train()
        ends.append(dict(runner.model.state_dict()))
    assert differences(*ends) == []
