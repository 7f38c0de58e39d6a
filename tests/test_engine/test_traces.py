"""Calibration, drift, counting and the first look leave nothing behind: counters in Python, buffers, modes, draws."""
from collections import deque
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from tests.runs import differences
from tests.steps import dyrep_hook
from tests.strange import Model, body, grown, runner_for


class DropBlock(nn.Module):
    """In front of an op, as a step of a schedule that it counts by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.history = 0, deque(maxlen=4)
        self.register_buffer('rate', torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.step += 1
            self.rate += 0.01
            self.history.append(self.step)
            return x * (torch.rand_like(x) > self.rate)
        return x


class Counting(Model):
    """Counts in the backbone, in front of it and behind it; keeps features of earlier batches."""

    def __init__(self) -> None:
        net = body()
        net.insert(3, DropBlock())
        super().__init__(net)
        self.forwards, self.ramp = 0, dict(weight=0.0)
        self.register_buffer('bank', torch.zeros(6, 4))
        self.register_buffer('pointer', torch.zeros((), dtype=torch.long))
        self.centre = torch.zeros(4)

    def logits(self, inputs: Tensor) -> Tensor:
        self.forwards += 1
        self.ramp['weight'] = min(1.0, self.ramp['weight'] + 0.02)
        self.centre = 0.9 * self.centre + 0.1 * inputs.mean()
        self.bank[self.pointer % 6] = inputs.mean()
        self.pointer += 1
        return super().logits(inputs) * self.ramp['weight']


def state(model: Counting) -> Dict[str, Any]:
    drop = model.backbone[3]
    return dict(forwards=model.forwards, ramp=dict(model.ramp), bank=model.bank.clone(), pointer=int(model.pointer),
                centre=model.centre.clone(), drop=drop.step, rate=drop.rate.clone(), history=list(drop.history))


class Norms(Hook):
    """Modes of all norms, in front of each iteration."""

    def __init__(self) -> None:
        self.seen: List[List[bool]] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.seen.append([module.training for module in runner.model.modules() if isinstance(module, nn.BatchNorm2d)])


@pytest.mark.parametrize('iters', [None, 9], ids=['epochs', 'iterations'])
def test_counters_and_buffers_are_those_of_the_plain_run(tmp_path: Path, iters: Any) -> None:
    ends = {}
    for name, hook in dict(plain=None, dyrep=dict(max_macs_ratio=4.0)).items():
        hooks = [EMAHook()] if name == 'dyrep' else []
        runner = runner_for(Counting(), tmp_path / name, hook, hooks, iters=iters)
        runner.train()
        ends[name] = state(runner.model)
        if name == 'dyrep':
            assert len(grown(runner)) == 3
            averaged = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
            assert averaged.forwards == averaged.backbone[3].step == 0
    assert differences(ends['plain'], ends['dyrep']) == [] and ends['plain']['drop'] == ends['plain']['forwards'] == 9


def test_the_first_look_leaves_the_training_that_follows_alone(tmp_path: Path) -> None:
    ends = {}
    for name, hook in dict(plain=None, dyrep=dict(begin=100)).items():
        model = Counting()
        model.backbone._dyrep.input_shape = None
        runner = runner_for(model, tmp_path / name, hook)
        runner.train()
        ends[name] = dict(model.state_dict(), **state(model))
    assert differences(ends['plain'], ends['dyrep']) == []


class FreezeByHand(Hook):
    """One norm in eval mode from the second iteration on, as many a fine-tuning does it."""

    def __init__(self, part: str) -> None:
        self.part = part

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter in (1, 4, 7):
            runner.model.backbone.get_submodule(self.part).eval()


def test_modes_that_a_hook_has_set_outlive_an_update(tmp_path: Path) -> None:
    modes: List[Any] = []

    class Look(Hook):
        priority = 81

        def after_train_epoch(self, runner: Runner) -> None:
            backbone = runner.model.backbone
            modes.append((backbone[1].training, backbone[4].training, backbone[7].training, backbone.training, [
                norm.training for name in backbone.structure['ops'] if name == '3'
                for norm in backbone[3].modules() if isinstance(norm, nn.BatchNorm2d)]))

    runner = runner_for(Model(max_depth=1), tmp_path, hooks=[FreezeByHand('4'), Look()], epochs=3)
    runner.train()
    assert {'0', '3', '6'} == set(grown(runner))
    assert all(mode[:4] == (True, False, True, True) for mode in modes)
    inside = [mode[4] for mode in modes if mode[4]]
    # the block's norms follow the one behind the op
    assert inside and not any(any(norms) for norms in inside)
    assert dyrep_hook(runner).history.updates[0]['drift'] < 1e-5
