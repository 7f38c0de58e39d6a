"""Features of the runner that DyRep works with: a training grows, keeps its function and ends."""
import copy
from pathlib import Path
from typing import Any, Dict

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from tests.resuming import dyrep_config
from tests.runs import needs_images
from tests.steps import Call, dyrep_hook, runner_of
from tests.test_engine.test_optimizer import by_parameter

MIXUP = dict(action_epoch=2, train_augments=dict(augments=[dict(type='Mixup', alpha=0.8)]))
LAYER_DECAY = dict(constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
                   paramwise_cfg=dict(layer_decay_rate=0.7))
# two stages of ResNet_CIFAR are no depth that mmpretrain's layer-wise decay knows
RESNET34 = dict(type='mmpretrain.ResNet', depth=34, stem_channels=4, base_channels=4, in_channels=1, out_indices=(3, ))
FEATURES: Dict[str, Dict[str, Any]] = dict(
    frozen_stages=dict(model=dict(backbone=dict(backbone=dict(frozen_stages=1)))),
    gradient_checkpointing=dict(model=dict(backbone=dict(backbone=dict(with_cp=True)))),
    layer_decay=dict(optim_wrapper=LAYER_DECAY, model=dict(
        backbone=dict(backbone=dict(_delete_=True, **RESNET34)), head=dict(in_channels=32))),
    norm_eval=dict(model=dict(backbone=dict(backbone=dict(norm_eval=True)))),
    activation_checkpointing=dict(activation_checkpointing=['backbone.layer1']),
    precise_bn=dict(custom_hooks=[dict(type='PreciseBNHook', num_samples=64, priority='ABOVE_NORMAL')]),
    persistent_workers=dict(train_dataloader=dict(num_workers=1, persistent_workers=True)),
    switch_recipe=dict(custom_hooks=[dict(type='SwitchRecipeHook', schedule=[MIXUP])]))


def short(**changes: Any) -> Any:
    cfg = dyrep_config(images=96)
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = 2
    cfg.merge_from_dict(copy.deepcopy(changes))  # a merge takes `_delete_` out
    return cfg


@needs_images
@pytest.mark.parametrize('name', FEATURES)
def test_works_with(tmp_path: Path, name: str) -> None:
    runner = runner_of(short(**FEATURES[name]), tmp_path)
    runner.train()
    updates = dyrep_hook(runner).history.updates
    assert [len(update['grown']) for update in updates] == [1, 1]
    assert all(update['drift'] < 1e-5 for update in updates)


OPTIMIZERS = [dict(type='SGD', lr=0.05, weight_decay=1e-4),
              dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
              dict(type='AdamW', lr=1e-3, weight_decay=0.05), dict(type='Lamb', lr=1e-3, weight_decay=0.05)]
KEYS = {'layer1.0.conv1': dict(lr_mult=0.1), 'conv1': dict(decay_mult=0.3)}
PARAMWISE = [{}, dict(paramwise_cfg=dict(norm_decay_mult=0.0, bypass_duplicate=True)),
             dict(paramwise_cfg=dict(norm_decay_mult=0.5, custom_keys=KEYS)), LAYER_DECAY]


@needs_images
@pytest.mark.parametrize('optimizer', OPTIMIZERS, ids=lambda item: item['type'])
@pytest.mark.parametrize('paramwise', PARAMWISE, ids=['one', 'norms', 'keys', 'layer_decay'])
def test_groups_are_those_of_a_fresh_construction(tmp_path: Path, optimizer: Any, paramwise: Any) -> None:
    wrapper = dict(type='OptimWrapper', optimizer=optimizer, **paramwise)
    states: Dict[Any, Any] = {}

    def before(runner: Runner) -> None:
        states.clear()
        states.update(runner.optim_wrapper.optimizer.state)

    def after(runner: Runner) -> None:
        mine = runner.optim_wrapper.optimizer
        fresh = build_optim_wrapper(runner.model, dict(wrapper)).optimizer
        listed = [parameter for group in mine.param_groups for parameter in group['params']]
        trainable = [parameter for parameter in runner.model.parameters() if parameter.requires_grad]
        assert len(listed) == len({id(parameter) for parameter in listed}) == len(trainable)
        assert {id(parameter) for parameter in listed} == {id(parameter) for parameter in trainable}
        expected = by_parameter(fresh.param_groups)
        for parameter, group in by_parameter(mine.param_groups).items():
            assert all(group[key] == value for key, value in expected[parameter].items()
                       if key != 'params' and 'name' not in key)
        present = {id(parameter) for parameter in listed}
        kept = [parameter for parameter in states if id(parameter) in present]
        assert all(mine.state[parameter] is states[parameter] for parameter in kept)
        assert len(mine.state) == len(kept)

    cfg = short()
    if paramwise is LAYER_DECAY:
        cfg.merge_from_dict(copy.deepcopy(FEATURES['layer_decay']))
    cfg.optim_wrapper = wrapper
    runner = runner_of(cfg, tmp_path, Call(before, after))
    runner.train()
    assert all(update['grown'] for update in dyrep_hook(runner).history.updates)


@needs_images
def test_activation_checkpointing_with_averaged_weights_and_a_budget(tmp_path: Path) -> None:
    # the budget counts a fused copy, where a deep copy of a checkpointed module would run that of the source
    ema = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)])
    updates = {}
    for name, changes in dict(without={}, with_=dict(activation_checkpointing=['backbone.layer1'])).items():
        cfg = short(**ema, **changes)
        cfg.default_hooks.dyrep.max_macs_ratio = 1.5
        runner = runner_of(cfg, tmp_path / name)
        runner.train()
        updates[name] = dyrep_hook(runner).history.updates
        assert all(update['drift'] < 1e-5 and update['drift_ema'] < 1e-5 for update in updates[name])
    assert [update['grown'][0]['op'] for update in updates['with_']] == [
        update['grown'][0]['op'] for update in updates['without']]
    assert [update['macs'] for update in updates['with_']] == [update['macs'] for update in updates['without']]
