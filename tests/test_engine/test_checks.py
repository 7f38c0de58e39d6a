"""What DyRep can't work with is refused before the first iteration, with the reason."""
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from mmdyrep import DyRepHook
from tests.resuming import dyrep_config
from tests.runs import needs_images
from tests.steps import runner_of


@needs_images
def test_optim_wrapper_dict(tmp_path: Path) -> None:
    cfg = dyrep_config()
    cfg.param_scheduler = []
    part = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    cfg.optim_wrapper = dict(backbone=part, constructor='TwoParts')

    class TwoParts:
        def __init__(self, optim_wrapper_cfg: Any, paramwise_cfg: Any = None) -> None:
            pass

        def __call__(self, model: nn.Module) -> OptimWrapperDict:
            return OptimWrapperDict(backbone=build_optim_wrapper(model.backbone, dict(part)),
                                    head=build_optim_wrapper(model.head, dict(part)))

    OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=TwoParts, force=True)
    with pytest.raises(ValueError, match='DyRepHook needs one OptimWrapper, got OptimWrapperDict'):
        runner_of(cfg, tmp_path).train()


@needs_images
def test_flexible_runner(tmp_path: Path) -> None:
    cfg = dyrep_config()
    cfg.work_dir = str(tmp_path)
    del cfg.default_hooks['random_state']
    cfg = Config(dict(cfg, experiment_name=tmp_path.name, env_cfg={}, strategy=dict(type='SingleDeviceStrategy')))
    with pytest.raises(ValueError, match='DyRepHook does not work with FlexibleRunner'):
        FlexibleRunner.from_cfg(cfg).train()


@needs_images
def test_efficient_conv_bn_eval(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='DyRepHook does not work with efficient_conv_bn_eval'):
        runner_of(dyrep_config(efficient_conv_bn_eval=['backbone']), tmp_path).train()


@needs_images
@pytest.mark.parametrize('by_epoch', [True, False])
def test_by_epoch_that_does_not_fit_the_loop(tmp_path: Path, by_epoch: bool) -> None:
    cfg = dyrep_config(by_epoch=by_epoch, hook=dict(by_epoch=not by_epoch))
    with pytest.raises(ValueError, match=f'by_epoch={not by_epoch} does not fit .*TrainLoop; give by_epoch={by_epoch}'):
        runner_of(cfg, tmp_path).train()


@pytest.mark.parametrize('setting, message', [
    (dict(interval=0), 'interval must be a whole number of at least 1'), (dict(begin=-1), 'begin must be'),
    (dict(begin=3, end=3), 'end must be a whole number of at least 4'), (dict(metric='flow'), "metric 'flow'"),
    (dict(num_grow=True), 'num_grow must be'), (dict(max_macs_ratio=1), 'max_macs_ratio is a multiple'),
    (dict(dep=dict(lamda=1)), 'dep takes threshold'), (dict(calibration_batches=1.5), 'calibration_batches must be')])
def test_settings(setting: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DyRepHook(**setting)


@needs_images
@pytest.mark.parametrize('by_epoch', [True, False])
def test_nothing_is_asked_of_a_test_run_whose_config_tells_of_a_training(tmp_path: Path, by_epoch: bool) -> None:
    # as the libraries' own test.py makes one
    cfg = dyrep_config(by_epoch=by_epoch, hook={}, test_cfg=dict())
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    assert 0 <= Runner.from_cfg(Config(dict(cfg.to_dict(), work_dir=str(tmp_path)))).test()['accuracy/top1'] <= 100
