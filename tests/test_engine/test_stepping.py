"""Optimizers that step others, and training steps that step their own: seen, followed, or refused before they act."""
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from mmdyrep.engine.stepping import check_optimizer
from tests.processes import free_port
from tests.steps import Call, dyrep_hook
from tests.strange import Model, body, grown, runner_for


@OPTIMIZERS.register_module(force=True)
class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization as its best-known code has it: an inner optimizer with the same groups."""

    def __init__(self, params: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, dict(rho=rho, **options))
        self.base_optimizer = torch.optim.SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    self.state[parameter]['move'] = group['rho'] * parameter.grad
                    parameter.add_(self.state[parameter]['move'])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for parameter in group['params']:
                if 'move' in self.state[parameter]:
                    parameter.sub_(self.state[parameter]['move'])
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> None:
        raise NotImplementedError('two steps')


class Sharp(Model):
    """Trains by two steps of the optimizer, around the wrapper's update_params."""

    def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Any]:
        data = self.data_preprocessor(data, True)
        losses = []
        for step in (optim_wrapper.optimizer.first_step, optim_wrapper.optimizer.second_step):
            loss = self(**data, mode='loss')['loss']
            loss.backward()
            losses.append(loss)
            step()
        return dict(loss=losses[0])


class Trained(Hook):
    """Parameters that the last iteration trained."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.parameters = list(runner.model.parameters())

    def unknown(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> int:
        """How many of them, if a model has them still, an optimizer has no momentum of."""
        there = set(model.parameters())
        return sum('momentum_buffer' not in optimizer.state.get(parameter, {}) for parameter in self.parameters
                   if parameter in there)


SHARP = dict(optimizer=dict(type='SAM', lr=0.05, momentum=0.9))


@pytest.mark.parametrize('paramwise', [{}, dict(paramwise_cfg=dict(bias_lr_mult=2.0))], ids=['one', 'many'])
def test_inner_optimizer_of_sharpness_aware_minimization(tmp_path: Path, paramwise: Dict[str, Any]) -> None:
    seen, counts = Trained(), []
    runner = runner_for(Sharp(), tmp_path, hook=dict(dep=dict(threshold=1e-6)), epochs=4, optim_wrapper={
        **SHARP, **paramwise}, hooks=[seen, Call(before=lambda runner: counts.append(dict(
            dyrep_hook(runner).saliency.counts)))])
    runner.train()
    # once a step, on the gradient that the real step is taken with
    assert set(counts[0].values()) == {3} and len(counts[0]) == 3
    assert len(grown(runner)) == 4
    optimizer = runner.optim_wrapper.optimizer
    assert seen.unknown(optimizer.base_optimizer, runner.model) == 0 and len(seen.parameters) > 20
    listed = {id(item) for group in optimizer.base_optimizer.param_groups for item in group['params']}
    assert listed == {id(parameter) for parameter in runner.model.parameters()}
    assert {id(parameter) for parameter in optimizer.base_optimizer.state} <= listed
    assert all(update['drift'] < 1e-5 for update in dyrep_hook(runner).history.updates)


@OPTIMIZERS.register_module(force=True)
class Copying(SAM):
    """The same, but the inner optimizer has groups of its own."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.base_optimizer = torch.optim.SGD([dict(group) for group in self.param_groups], lr=0.1)


def test_an_inner_optimizer_with_groups_of_its_own_is_refused(tmp_path: Path) -> None:
    runner = runner_for(Sharp(), tmp_path, optim_wrapper=dict(optimizer=dict(type='Copying', lr=0.05)))
    with pytest.raises(ValueError, match='Copying steps an inner SGD with parameter groups of its own.*param_groups'):
        runner.train()
    assert runner.iter == 0


def test_optimizers_that_keep_lists_of_parameters_are_refused(tmp_path: Path) -> None:
    runner = runner_for(Model(), tmp_path, optim_wrapper=dict(optimizer=dict(type='LBFGS', lr=0.05)))
    with pytest.raises(ValueError, match='LBFGS keeps parameters outside of its groups.*as SGD, Adam'):
        runner.train()


def test_sharded_optimizer_is_refused(tmp_path: Path) -> None:
    dist.init_process_group('gloo', rank=0, world_size=1, init_method=f'tcp://127.0.0.1:{free_port()}')
    try:
        runner = runner_for(Model(), tmp_path, optim_wrapper=dict(optimizer=dict(
            type='ZeroRedundancyOptimizer', optimizer_type='Adam', lr=0.01)))
        with pytest.raises(ValueError, match='ZeroRedundancyOptimizer keeps parameters outside of its groups'):
            runner.train()
    finally:
        dist.destroy_process_group()


class Own(Model):
    """Steps an optimizer of its own and leaves the wrapper's alone."""

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.make, self.mine = make, []

    def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Any]:
        loss = self(**self.data_preprocessor(data, True), mode='loss')['loss']
        if not self.mine:
            self.mine.append(self.make(self, optim_wrapper))
        self.mine[0].zero_grad()
        loss.backward()
        self.mine[0].step()
        return dict(loss=loss)


@pytest.fixture(params=[False, True], ids=['', 'something compiled before'])
def compiled(request: Any) -> None:
    """PyTorch's compiler takes the step hooks from the classes of all optimizers, once in a process."""
    if request.param:
        torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1))
        # as the compiler does, where an earlier test has had it done and undone
        hooked = Optimizer.profile_hook_step(lambda: None).__code__
        if torch.optim.SGD.step.__code__ is hooked:
            torch.optim.SGD.step = torch.optim.SGD.step.__wrapped__
        torch.optim.SGD.step.hooked = True
        assert torch.optim.SGD.step.__code__ is not hooked


def test_an_optimizer_of_the_training_step_with_the_same_groups_is_followed(tmp_path: Path, compiled: None) -> None:
    seen = Trained()
    model = Own(lambda model, wrapper: torch.optim.SGD(wrapper.optimizer.param_groups, lr=0.05, momentum=0.9))
    runner = runner_for(model, tmp_path, epochs=4, hooks=[seen])
    runner.train()
    assert len(grown(runner)) == 4 and seen.unknown(model.mine[0], model) == 0
    known = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in model.mine[0].state} <= known


def test_an_optimizer_of_the_training_step_is_refused_before_its_first_step(tmp_path: Path, compiled: None) -> None:
    model = Own(lambda model, wrapper: torch.optim.SGD(model.parameters(), lr=0.05))
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(RuntimeError, match='the training steps a SGD that holds parameters of the backbone and is not'):
        runner_for(model, tmp_path).train()
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_optimizers_of_other_networks_are_nobodys_business(tmp_path: Path) -> None:
    class Critic(Model):
        """Trains a second network by itself."""

        def __init__(self) -> None:
            super().__init__()
            self.critic = [nn.Linear(4, 1)]
            self.theirs = [torch.optim.SGD(self.critic[0].parameters(), lr=0.1)]

        def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Any]:
            self.critic[0](torch.ones(1, 4)).sum().backward()
            self.theirs[0].step()
            return super().train_step(data, optim_wrapper)

    runner = runner_for(Critic(), tmp_path)
    runner.train()
    assert len(grown(runner)) == 3


def test_an_optimizer_built_anew_in_the_training_is_watched(tmp_path: Path) -> None:
    counts: List[Any] = []

    class Anew(Hook):
        priority = 'VERY_HIGH'

        def before_train_epoch(self, runner: Runner) -> None:
            if runner.epoch == 1:
                runner.optim_wrapper = OptimWrapper(torch.optim.SGD(runner.model.parameters(), lr=0.05))

    runner = runner_for(Model(), tmp_path, hooks=[Anew(), Call(before=lambda runner: counts.append(
        set(dyrep_hook(runner).saliency.counts.values())))])
    runner.train()
    assert counts == [{3}, {3}, {3}] and len(grown(runner)) == 3
    known = {id(item) for group in runner.optim_wrapper.param_groups for item in group['params']}
    assert known == {id(parameter) for parameter in runner.model.parameters()}


def test_usual_optimizers_are_taken() -> None:
    net = body()
    for kind in ('SGD', 'Adam', 'AdamW', 'RMSprop', 'Adagrad', 'Adadelta', 'RAdam', 'NAdam', 'Rprop'):
        check_optimizer(getattr(torch.optim, kind)(net.parameters(), lr=0.1), net)
