"""Groups of the optimizer keep number, order and identity, so that hooks which note them go on working."""
import copy
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.engine.layout import arrange, layout, layout_of
from mmdyrep.engine.optimizer import rebuild_groups
from tests.resuming import dyrep_config, killed_and_resumed
from tests.runs import differences, needs_images
from tests.steps import Call, dyrep_hook, messages, runner_of

KEYS = {'layer1.0.conv1': dict(lr_mult=0.1), 'head': dict(lr_mult=2., decay_mult=0)}
PARAMWISE = dict(norm_decay_mult=0.0, custom_keys=KEYS)


class ByPosition(Hook):
    """What mmyolo's PPYOLOEParamSchedulerHook does: notes a rate for each group, sets it by the group's place."""

    def before_train(self, runner: Runner) -> None:
        self.rates = [group['initial_lr'] for group in runner.optim_wrapper.optimizer.param_groups]
        self.groups = list(runner.optim_wrapper.optimizer.param_groups)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        groups = runner.optim_wrapper.optimizer.param_groups
        assert len(groups) == len(self.groups) and all(a is b for a, b in zip(groups, self.groups))
        for place, group in enumerate(groups):
            group['lr'] = self.rates[place] * 0.5 ** runner.epoch


def short(**changes: Any) -> Any:
    cfg = dyrep_config(images=96, hook=dict(dep=dict(threshold=1e-6)))
    cfg.param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False)]
    cfg.train_cfg.max_epochs = 3
    cfg.optim_wrapper.paramwise_cfg = PARAMWISE
    cfg.merge_from_dict(copy.deepcopy(changes))
    return cfg


@needs_images
def test_a_hook_that_notes_groups_by_position_and_identity(tmp_path: Path, caplog: Any) -> None:
    rates: List[Dict[str, float]] = []

    def look(runner: Runner) -> None:
        names = {parameter: name for name, parameter in runner.model.named_parameters()}
        groups = runner.optim_wrapper.optimizer.param_groups
        rates.append({names[parameter]: group['lr'] / 0.05 for group in groups for parameter in group['params']})
        assert len(rates[-1]) == len(names)

    runner = runner_of(short(), tmp_path, Call(iteration=look), ByPosition())
    lines = messages(runner, caplog)
    updates = dyrep_hook(runner).history.updates
    assert sum(len(update['grown']) for update in updates) == 3 and any(update['cut'] for update in updates)
    assert not any('parameter groups more' in line for line in lines)
    assert any('.branches.' in name for name in rates[-1])
    for i, table in enumerate(rates):
        for name, rate in table.items():
            share = 0.1 if 'layer1.0.conv1' in name else 2 if 'head' in name else 1
            assert rate == pytest.approx(share * 0.5 ** (i // 3)), name


class Net(nn.Module):
    """A stem that is a group of its own by its name, and nothing else with its options."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = DyRepBackbone(nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)), input_shape=(8, 8))
        self.head = nn.Linear(4, 2)


def wrapper_of(model: nn.Module, cfg: Dict[str, Any]) -> OptimWrapper:
    from mmengine.optim import build_optim_wrapper
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg))
    for group in wrapper.optimizer.param_groups:
        group['initial_lr'] = group['lr']
    return wrapper


CFG = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
           paramwise_cfg=dict(norm_decay_mult=0., bias_lr_mult=2.))


def test_new_parameters_join_the_nearest_group_with_their_options() -> None:
    model = Net()
    wrapper = wrapper_of(model, CFG)
    before, groups = set(model.parameters()), list(wrapper.optimizer.param_groups)
    model.backbone.expand('0', ['1x1_kxk'])
    assert rebuild_groups(wrapper, model, CFG, before) == []
    assert all(a is b for a, b in zip(groups, wrapper.optimizer.param_groups)) and len(groups) == len(
        wrapper.optimizer.param_groups)
    names = layout(wrapper.optimizer, model)
    assert names[0] == [f'backbone.0.branches.{part}.weight' for part in ('kxk.conv', '1x1_kxk.conv1', '1x1_kxk.conv')]
    norms = [f'backbone.0.branches.{part}' for part in ('kxk.bn', '1x1_kxk.bn1', '1x1_kxk.bn')]
    # the first of the nearest: the norm's weight has a group, its bias one of the same options behind it
    joined = [name for group in names[1:3] for name in group]
    assert set(joined) == {f'{norm}.{part}' for norm in norms for part in ('weight', 'bias')} | {
        'backbone.1.weight', 'backbone.1.bias'}


def test_a_group_without_parameters_stays_and_a_bias_that_returns_finds_one() -> None:
    model = Net()
    wrapper = wrapper_of(model, CFG)
    before, groups = set(model.parameters()), list(wrapper.optimizer.param_groups)
    model.backbone.expand('3', ['1x1'])
    rebuild_groups(wrapper, model, CFG, before)
    assert [] in [group['params'] for group in groups] and wrapper.optimizer.param_groups == groups
    before = set(model.parameters())
    model.backbone.remove('3', ['1x1'])
    lines = rebuild_groups(wrapper, model, CFG, before)
    listed = [parameter for group in wrapper.optimizer.param_groups for parameter in group['params']]
    assert {id(item) for item in listed} == {id(item) for item in model.parameters()} and len(listed) == 9
    rate, = [group['lr'] for group in wrapper.optimizer.param_groups for item in group['params']
             if item is model.backbone[3].bias]
    assert rate == 0.2 and lines == []


def test_options_that_no_group_has_get_one_behind_the_others_and_that_is_said() -> None:
    cfg = dict(CFG, paramwise_cfg=dict(custom_keys={'branches': dict(lr_mult=3.)}))
    model = Net()
    wrapper = wrapper_of(model, cfg)
    for group in wrapper.optimizer.param_groups:
        group['lr'] *= 0.5  # a schedule
    before, groups = set(model.parameters()), list(wrapper.optimizer.param_groups)
    model.backbone.expand('0', ['1x1'])
    line, = rebuild_groups(wrapper, model, cfg, before)
    assert 'has 1 parameter groups more, behind the others' in line and 'backbone.0.branches.' in line
    assert wrapper.optimizer.param_groups[:-1] == groups
    last = wrapper.optimizer.param_groups[-1]
    assert last['lr'] == pytest.approx(0.15) and last['initial_lr'] == pytest.approx(0.3)
    assert len(last['params']) == 5  # the original's norm, the branch and its norm; the op's weight has its group


def test_parameters_of_somebody_else_stay_and_those_unfrozen_since_join() -> None:
    model = Net()
    model.backbone[0].weight.requires_grad_(False)
    wrapper = wrapper_of(model, CFG)  # mmengine's constructor leaves out what is frozen
    foreign = nn.Parameter(torch.zeros(2))
    wrapper.optimizer.add_param_group(dict(params=[foreign], lr=7., initial_lr=7.))
    model.backbone[0].weight.requires_grad_(True)
    before = set(model.parameters())
    model.backbone.expand('3', ['1x1'])
    line, = rebuild_groups(wrapper, model, CFG, before)
    assert '1 parameters (backbone.0.weight, ...) were not in the optimizer' in line
    assert wrapper.optimizer.param_groups[-1]['params'][0] is foreign
    listed = {id(item) for group in wrapper.optimizer.param_groups for item in group['params']}
    assert listed == {id(foreign), *(id(parameter) for parameter in model.parameters())}


@pytest.mark.parametrize('paramwise', [None, CFG['paramwise_cfg']], ids=['one group', 'paramwise'])
def test_a_layout_is_found_again_from_any_start(paramwise: Any) -> None:
    cfg = dict(CFG, paramwise_cfg=paramwise)
    model = Net()
    wrapper = wrapper_of(model, cfg)
    for op in ('3', '0'):
        before = set(model.parameters())
        model.backbone.expand(op)
        rebuild_groups(wrapper, model, cfg, before)
    wanted = layout(wrapper.optimizer, model)
    # one that begins with the structure, as structure= or pretrained= make it
    other = Net()
    other.backbone.load_structure(model.backbone.structure)
    resumed = wrapper_of(other, cfg)
    arrange(resumed.optimizer, other, wanted)
    assert layout(resumed.optimizer, other) == wanted
    resumed.load_state_dict(wrapper.state_dict())
    kinds = [[{key: value for key, value in group.items() if key != 'params'} for group in item.optimizer.param_groups]
             for item in (wrapper, resumed)]
    assert kinds[0] == kinds[1]
    # and a checkpoint of an earlier version, whose groups were those of a fresh construction
    fresh = wrapper_of(other, cfg)
    old = dict(optimizer=fresh.optimizer.state_dict())
    found = layout_of(old, wrapper.optimizer, model, cfg)
    assert found == (None if paramwise is None else layout(fresh.optimizer, other))
    with pytest.raises(ValueError, match='has backbone.9.weight, which the model does not have'):
        arrange(resumed.optimizer, other, [['backbone.9.weight']])


class ThreeGroups(DefaultOptimWrapperConstructor):
    """Biases, norms, weights: what mmyolo's YOLOv5OptimizerConstructor builds."""

    def __call__(self, model: nn.Module) -> OptimWrapper:
        groups: List[List[nn.Parameter]] = [[], [], []]
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                kind = 0 if name == 'bias' else 1 if isinstance(module, nn.BatchNorm2d) else 2
                groups[kind].append(parameter)
        optimizer = torch.optim.SGD([
            dict(params=groups[0], weight_decay=0.), dict(params=groups[1], weight_decay=0., nesterov=False),
            dict(params=groups[2], weight_decay=1e-3)], lr=0.05, momentum=0.9)
        return OptimWrapper(optimizer)


OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=ThreeGroups, force=True)


@needs_images
def test_three_groups_of_a_constructor_keep_their_kinds(tmp_path: Path) -> None:
    cfg = short()
    cfg.optim_wrapper = dict(type='OptimWrapper', constructor='ThreeGroups', optimizer=dict(type='SGD', lr=0.05))
    runner = runner_of(cfg, tmp_path, ByPosition())
    runner.train()
    norms = {id(parameter) for module in runner.model.modules() if isinstance(module, nn.BatchNorm2d)
             for parameter in [module.weight]}
    names = {parameter: name for name, parameter in runner.model.named_parameters()}
    for kind, group in enumerate(runner.optim_wrapper.optimizer.param_groups):
        kinds = {0 if names[parameter].endswith('bias') else 1 if id(parameter) in norms else 2
                 for parameter in group['params']}
        assert kinds == {kind}
    assert sum(len(group['params']) for group in runner.optim_wrapper.optimizer.param_groups) == len(names)


@needs_images
@pytest.mark.slow
def test_a_killed_run_with_many_groups_ends_as_the_straight_one(tmp_path: Path) -> None:
    cfg = dyrep_config()
    cfg.optim_wrapper.paramwise_cfg = PARAMWISE
    assert killed_and_resumed(cfg, tmp_path) == []
    saved = [torch.load(tmp_path / name / 'epoch_4.pth', weights_only=False)['dyrep']['groups']
             for name in ('straight', 'resumed')]
    assert differences(*saved) == [] and max(map(len, saved[0])) > 3
