"""What schedules, custom keys and loops do in a DyRep run is what they do in its plain twin."""
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from mmdyrep import DyRepBackbone, DyRepHook
from tests.resuming import dyrep_config
from tests.runs import needs_images, small_config
from tests.steps import Call, dyrep_hook, messages, runner_of

SCHEDULES: Dict[str, Any] = dict(
    auto_scale=dict(auto_scale_lr=dict(enable=True, base_batch_size=64),
                    param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4)),
    warm_up=dict(param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
                                  dict(type='PolyLR', power=0.9, begin=3, end=6, by_epoch=False)]),
    one_cycle=dict(param_scheduler=dict(type='OneCycleLR', eta_max=0.1, total_steps=6, by_epoch=False)),
    steps=dict(param_scheduler=[dict(type='MultiStepLR', milestones=[1], by_epoch=True),
                                dict(type='ExponentialMomentum', gamma=0.9, by_epoch=False)]),
    restart=dict(param_scheduler=[dict(type='CosineRestartLR', periods=[2, 4], restart_weights=[1, 0.5],
                                       eta_min=0.001, by_epoch=False),
                                  dict(type='ConstantMomentum', factor=0.5, end=4, by_epoch=False)]))


def short(make: Any, **changes: Any) -> Config:
    cfg = make(images=96)
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = 2
    cfg.merge_from_dict(changes)
    return cfg


def rates(folder: Path, make: Any, changes: Dict[str, Any]) -> List[Any]:
    """Learning rate and momentum of each iteration, those of all groups alike."""
    seen: List[Any] = []

    def look(runner: Runner) -> None:
        groups = runner.optim_wrapper.optimizer.param_groups
        values = {(group['lr'], group['momentum'], group.get('initial_lr')) for group in groups}
        assert len(values) == 1, values
        seen.append(values.pop())

    cfg = short(make)
    cfg.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0)
    cfg.update(changes)
    runner_of(cfg, folder, Call(iteration=look)).train()
    return seen


@needs_images
@pytest.mark.parametrize('name', SCHEDULES)
def test_schedules_are_those_of_the_plain_twin(tmp_path: Path, name: str) -> None:
    plain = rates(tmp_path / 'plain', small_config, SCHEDULES[name])
    assert len(set(plain)) > 1
    assert rates(tmp_path / 'dyrep', dyrep_config, SCHEDULES[name]) == plain


@needs_images
def test_custom_keys_of_an_expanded_op_match_as_before(tmp_path: Path) -> None:
    cfg = short(dyrep_config)
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={'layer1.0.conv1': dict(lr_mult=0.1, decay_mult=0)})
    runner = runner_of(cfg, tmp_path)
    runner.model.backbone.expand('layer1.0.conv1')
    groups = {id(group['params'][0]): group for group in runner.build_optim_wrapper(cfg.optim_wrapper).param_groups}
    for name, parameter in runner.model.named_parameters():
        inside = name.startswith('backbone.layer1.0.conv1.')
        assert groups[id(parameter)]['lr'] == pytest.approx(0.005 if inside else 0.05), name
        assert groups[id(parameter)]['weight_decay'] == (0 if inside else 1e-4), name
    assert any('layer1.0.conv1.branches.1x1_kxk.conv.weight' in name for name, _ in runner.model.named_parameters())


@OPTIMIZERS.register_module()
class StepOfItsBase(torch.optim.SGD):
    """Calls the step of its base class, as many optimizers of users do."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@needs_images
def test_an_optimizer_that_calls_its_base_is_seen_once_a_step(tmp_path: Path) -> None:
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # PyTorch adds hooks to a class at its first instance
    counts: Dict[str, int] = {}
    cfg = short(dyrep_config)
    cfg.optim_wrapper = dict(optimizer=dict(type='StepOfItsBase', lr=0.05))
    runner = runner_of(cfg, tmp_path, Call(before=lambda runner: counts.update(
        dyrep_hook(runner).saliency.state_dict()['counts'])))
    runner.train()
    assert set(counts.values()) == {3}


def with_validation(cfg: Config, folder: Path) -> Runner:
    cfg.work_dir, cfg.experiment_name = str(folder), f'{folder.parent.name}-{folder.name}'
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.val_dataloader, cfg.val_evaluator, dict()
    return Runner.from_cfg(cfg)


@needs_images
def test_test_after_train_and_dynamic_intervals(tmp_path: Path) -> None:
    cfg = short(dyrep_config, train_cfg=dict(max_epochs=3, val_interval=5, dynamic_intervals=[(1, 1)]))
    runner = with_validation(cfg, tmp_path)
    validated: List[int] = []
    runner.register_hook(Validations(validated))
    runner.train()
    assert validated == [1, 2, 3]
    found = runner.test()
    assert found['accuracy/top1'] == runner.val()['accuracy/top1']
    assert len(dyrep_hook(runner).history.updates) == 3
    assert runner.model.backbone.structure['ops']


class Validations(Call):
    """Notes the epochs after which it was validated."""

    def __init__(self, epochs: List[int]) -> None:
        super().__init__()
        self.epochs = epochs

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        if len(self.epochs) < 3:
            self.epochs.append(runner.epoch)


@needs_images
def test_early_stopping_ends_the_run_between_two_updates(tmp_path: Path) -> None:
    cfg = short(dyrep_config, train_cfg=dict(max_epochs=4))
    cfg.custom_hooks = [dict(type='EarlyStoppingHook', monitor='accuracy/top1', rule='greater', patience=1,
                             min_delta=100)]
    runner = with_validation(cfg, tmp_path)
    runner.train()
    history = dyrep_hook(runner).history
    assert 1 <= len(history.updates) < 4
    assert history.iterations == runner.iter == 3 * len(history.updates)
    assert (tmp_path / 'dyrep' / f'structure_{len(history.updates)}.json').exists()


# ---------------------------------------------------------------------- a runner without a config

class Stripes(IterableDataset):
    """Images of two kinds without end or length."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        while True:
            kind = int(torch.randint(2, (1, ), generator=generator))
            image = torch.randn(3, 16, 16, generator=generator)
            image[:, ::2] += 2 * kind
            yield dict(inputs=image, kind=kind)


class Classifier(BaseModel):
    """A network of plain PyTorch in a model of mmengine."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = DyRepBackbone(nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()))
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: Any, kind: Any = None, mode: str = 'tensor') -> Any:
        inputs = torch.stack(inputs) if isinstance(inputs, list) else inputs
        scores = self.head(self.backbone(inputs).mean((2, 3)))
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(scores, torch.as_tensor(kind)))
        return scores


def test_runner_without_config_and_a_dataset_without_length(tmp_path: Path, caplog: Any) -> None:
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    runner = Runner(
        model, str(tmp_path), train_dataloader=DataLoader(Stripes(), batch_size=8),
        train_cfg=dict(by_epoch=False, max_iters=24), optim_wrapper=OptimWrapper(optimizer),
        # mmengine's logger asks for the length of every loader
        default_hooks=dict(logger=None, checkpoint=None),
        custom_hooks=[DyRepHook(by_epoch=False, interval=8, calibration_batches=4)],
        randomness=dict(seed=0, deterministic=True), experiment_name=tmp_path.name)
    lines = messages(runner, caplog)
    assert sum(': expanded ' in line for line in lines) == 3
    updates = dyrep_hook(runner).history.updates
    assert [update['iter'] for update in updates] == [8, 16, 24]
    assert all(update['drift'] < 1e-5 for update in updates)
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    assert {id(parameter) for parameter in parameters} == {id(parameter) for parameter in model.parameters()}
    assert len(parameters) == len(set(parameters))
    assert all('momentum_buffer' in optimizer.state[item] for item in parameters if item in optimizer.state)


def test_channels_last_is_kept(tmp_path: Path) -> None:
    model = Classifier().to(memory_format=torch.channels_last)
    backbone = model.backbone.eval()
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    before = backbone(x)
    backbone.expand('0')
    backbone.expand('3')
    after = backbone(x)
    assert torch.allclose(before, after, atol=1e-5)
    assert after.is_contiguous(memory_format=torch.channels_last)
    for name, parameter in backbone.named_parameters():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last), name
    assert backbone.to_plain()(x).is_contiguous(memory_format=torch.channels_last)
