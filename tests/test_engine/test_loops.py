"""Loops, loaders and training steps of the user's own: batches go through the model as its own step does."""
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import Tensor, nn

from tests.runs import differences
from tests.steps import Call, dyrep_hook, messages
from tests.strange import Model, grown, loader, runner_for


class Loaders(list):
    """Several loaders; mmengine's own hooks ask for the data set."""

    @property
    def dataset(self) -> Any:
        return self[0].dataset


class NamedLoaders(dict):

    @property
    def dataset(self) -> Any:
        return next(iter(self.values())).dataset


@LOOPS.register_module(force=True)
class TwoLoaders(BaseLoop):
    """Draws from several loaders at once, as semi-supervised trainings do; an epoch has four iterations.

    Args:
        runner (Runner): Its runner.
        dataloader (list or dict): Loaders.
        max_epochs (int): Epochs.
    """

    def __init__(self, runner: Runner, dataloader: Any, max_epochs: int) -> None:
        loaders = dataloader['of']
        super().__init__(runner, (list(loaders.values()) if isinstance(loaders, dict) else loaders)[0])
        self.dataloader = NamedLoaders(loaders) if isinstance(loaders, dict) else Loaders(loaders)
        self.max_epochs, self.max_iters, self.epoch, self.iter = max_epochs, 4 * max_epochs, 0, 0
        self._epoch, self._iter = 0, 0

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        for epoch in range(self.max_epochs):
            self.epoch = epoch
            self.runner.call_hook('before_train_epoch')
            self.runner.model.train()
            is_dict = isinstance(self.dataloader, dict)
            iterators = [iter(part) for part in (self.dataloader.values() if is_dict else self.dataloader)]
            for number in range(4):
                parts = []
                for i, part in enumerate(iterators):
                    batch = next(part, None)
                    if batch is None:
                        part = iterators[i] = iter(loader(16))
                        batch = next(part)
                    parts.append(batch)
                data = dict(zip(self.dataloader, parts)) if is_dict else parts
                self.runner.call_hook('before_train_iter', batch_idx=number, data_batch=data)
                outputs = self.runner.model.train_step(data, optim_wrapper=self.runner.optim_wrapper)
                self.runner.call_hook('after_train_iter', batch_idx=number, data_batch=data, outputs=outputs)
                self.iter += 1
            self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model


class Unpacking(Model):
    """Takes its batch apart, in place, and scales the images of it."""

    def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Tensor]:
        parts = list(data.values()) if isinstance(data, dict) and 'inputs' not in data else data
        parts = parts if isinstance(parts, list) else [parts]
        loss = torch.zeros(())
        with optim_wrapper.optim_context(self):
            while parts:
                part = parts.pop()
                images, kind = part.pop('inputs'), part.pop('kind')
                images.mul_(2.0)
                loss = loss + self(images, kind, mode='loss')['loss']
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


@pytest.mark.parametrize('kind', [list, dict])
def test_several_loaders_and_a_step_that_takes_the_batch_apart(tmp_path: Path, kind: Any) -> None:
    data = [loader(24), loader(16)]
    data = data if kind is list else dict(labelled=data[0], other=data[1])
    runner = runner_for(Unpacking(), tmp_path, data=dict(of=data), cfg=dict(type='TwoLoaders', max_epochs=3),
                        hooks=[EMAHook()], hook=dict(calibration_batches=3))
    runner.train()
    updates = dyrep_hook(runner).history.updates
    assert [len(update['grown']) for update in updates] == [1, 1, 1]
    assert all(0 < update['drift'] < 1e-5 for update in updates)


@LOOPS.register_module(force=True)
class ShortEpochs(EpochBasedTrainLoop):
    """Leaves each epoch early."""

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, data_batch in enumerate(self.dataloader):
            if idx == 2:
                break
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


def test_an_epoch_that_is_not_the_loaders(tmp_path: Path) -> None:
    kept: List[int] = []
    runner = runner_for(Model(), tmp_path, data=loader(240), cfg=dict(type='ShortEpochs', max_epochs=2),
                        hooks=[Call(before=lambda runner: kept.append(len(dyrep_hook(runner).batches.all())))])
    runner.train()
    assert kept == [2, 2] and len(grown(runner)) == 2
    assert all(update['drift'] is not None for update in dyrep_hook(runner).history.updates)


@LOOPS.register_module(force=True)
class PlainIterations(BaseLoop):
    """Iterations, without an iterator that could be watched."""

    def __init__(self, runner: Runner, dataloader: Any, max_iters: int) -> None:
        super().__init__(runner, dataloader)
        self.max_iters, self.max_epochs, self.epoch, self.iter, self._epoch, self._iter = max_iters, 1, 0, 0, 0, 0

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        while self.iter < self.max_iters:
            for data in self.dataloader:
                self.runner.model.train()
                self.runner.call_hook('before_train_iter', batch_idx=self.iter, data_batch=data)
                outputs = self.runner.model.train_step(data, optim_wrapper=self.runner.optim_wrapper)
                self.runner.call_hook('after_train_iter', batch_idx=self.iter, data_batch=data, outputs=outputs)
                self.iter += 1
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model


def test_iterations_of_a_loop_that_can_not_be_watched(tmp_path: Path) -> None:
    kept: List[int] = []
    runner = runner_for(Model(), tmp_path, hook=dict(by_epoch=False, interval=3),
                        cfg=dict(type='PlainIterations', max_iters=9),
                        hooks=[Call(before=lambda runner: kept.append(len(dyrep_hook(runner).batches.all())))])
    runner.train()
    assert kept[2::3] == [2, 2, 2] and len(grown(runner)) == 3


class Broken(Model):
    """Needs what the hook's batch does not have."""

    def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Tensor]:
        return super().train_step(dict(inputs=data['images'], kind=data['kind']), optim_wrapper)


@LOOPS.register_module(force=True)
class Renaming(IterBasedTrainLoop):
    """Tells the hooks of other batches than it trains on."""

    def run_iter(self, data_batch: Any) -> None:
        self.runner.call_hook('before_train_iter', batch_idx=self._iter, data_batch=data_batch)
        self.runner.model.train_step(dict(images=data_batch['inputs'], kind=data_batch['kind']),
                                     optim_wrapper=self.runner.optim_wrapper)
        self._iter += 1


def test_batches_that_are_not_those_of_the_step_are_refused_before_the_first(tmp_path: Path) -> None:
    runner = runner_for(Broken(), tmp_path, iters=6, cfg=dict(type='Renaming', max_iters=6))
    with pytest.raises(RuntimeError, match="could not be put through the train_step of Broken.*KeyError: 'images'"):
        runner.train()
    assert runner.iter == 0


class ByMethod(Model):
    """Does not call the backbone as a module."""

    def logits(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone.forward(inputs).mean((2, 3)))


def test_a_backbone_that_is_not_called_as_a_module_is_said(tmp_path: Path, caplog: Any) -> None:
    runner = runner_for(ByMethod(), tmp_path, epochs=1)
    lines = messages(runner, caplog)
    assert any("does not call the backbone as a module, so its output can't be compared" in line for line in lines)
    update, = dyrep_hook(runner).history.updates
    assert update['grown'] and update['drift'] is None


def test_a_plain_step_is_run_as_before(tmp_path: Path) -> None:
    class Same(Model):
        """Its own step is the base class's."""

        def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Tensor]:
            return super().train_step(data, optim_wrapper)

    ends = []
    for name, kind in dict(base=Model, own=Same).items():
        runner = runner_for(kind(), tmp_path / name)
        runner.train()
        ends.append(dict(runner.model.state_dict()))
    assert differences(*ends) == [] and len(ends[0]) > 40
