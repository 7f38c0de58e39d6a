"""What is refused or said at the start of a training, and in its logs."""
import importlib.util
import json
from pathlib import Path
from typing import Any, Dict, List

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from torch import nn

from mmdyrep import DyRepBackbone
from tests.dyrep_runs import dyrep_config, runner_of, trained
from tests.runs import needs_images
from tests.steps import messages
from tests.strange import Model, runner_for

ANALYZE = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'analysis_tools' / 'analyze_logs.py'


def test_several_groups_without_a_config_are_refused_before_the_run(tmp_path: Path) -> None:
    model = Model()
    groups = [dict(params=model.backbone.parameters()), dict(params=model.head.parameters())]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    runner = runner_for(model, tmp_path, optim_wrapper=OptimWrapper(optimizer))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match='has 2 parameter groups and the runner knows no config'):
        runner.train()
    assert runner.iter == 0 and not (tmp_path / 'dyrep').exists()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('hook, options, expected', [
    (dict(interval=4), dict(epochs=3), 'the first would follow epoch 4, the training ends after 3 epochs (interval=4)'),
    (dict(begin=3), dict(epochs=3), 'the first would follow epoch 4, the training ends after 3 epochs'),
    (dict(interval=7), dict(iters=6), 'the first would follow iteration 7, the training ends after 6 iterations'),
    (dict(interval=3, end=2), dict(epochs=3), 'none is left before end, the training ends after 3 epochs'),
    (dict(interval=3), dict(epochs=3), None), (dict(begin=2), dict(epochs=3), None)], ids=str)
def test_updates_that_never_come_are_said(tmp_path: Path, caplog: Any, hook: Dict[str, Any], options: Dict[str, Any],
                                          expected: Any) -> None:
    lines = messages(runner_for(Model(), tmp_path, hook=hook, **options), caplog)
    told = [line for line in lines if 'no update will happen' in line]
    assert len(told) == (expected is not None) and all(expected in line for line in told)
    warned = [record for record in caplog.records if 'no update will happen' in record.getMessage()]
    assert all(record.levelname == 'WARNING' for record in warned)


@needs_images
def test_a_resumed_run_without_the_hook_says_what_to_do(tmp_path: Path) -> None:
    cfg = dyrep_config({}, images=64, param_scheduler=[])
    cfg.default_hooks.checkpoint.interval = 1
    cfg.train_cfg.max_epochs = 1
    trained(cfg, tmp_path / 'run')
    options = dict(images=64, param_scheduler=[], resume=True, load_from=str(tmp_path / 'run' / 'epoch_1.pth'))
    plain = dyrep_config(None, **options)
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group.*DyRep.*Add DyRepHook.*end="):
        runner_of(plain, tmp_path / 'without').train()
    # and what it says works: nothing grows any more
    runner = runner_of(dyrep_config(dict(end=1), **options), tmp_path / 'with')
    runner.train()
    assert runner.epoch == 4 and len(runner.model.backbone.structure['ops']) == 1


def test_errors_of_other_optimizers_stay_what_they_are() -> None:
    backbone = DyRepBackbone(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), input_shape=(8, 8))
    backbone.expand('0')
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1)
    with pytest.raises(ValueError) as caught:
        other.load_state_dict(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1).state_dict())
    assert 'DyRep' not in str(caught.value)


@needs_images
def test_mmpretrains_analysis_reads_the_log(tmp_path: Path) -> None:
    trained(dyrep_config({}, images=64), tmp_path, validate=True)
    path = next(tmp_path.glob('*/vis_data/scalars.json'))
    spec = importlib.util.spec_from_file_location('analyze_logs', ANALYZE)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    table, = [tool.load_json_log(str(path))]
    assert all('accuracy/top1' in line for line in table['val']) and len(table['val']) == 4
    assert [line['step'] for line in table['train']] == [2, 4, 6, 8]
    # each metric that the first line offers is there in all, as its curves want it
    assert all(set(table['train'][0]) <= set(line) for line in table['train'])
    assert {'dyrep/macs', 'dyrep/parameters', 'dyrep/blocks', 'loss', 'time'} <= set(table['train'][0])
    # steps of what is drawn besides validation, which mmengine counts in epochs, never go backwards
    steps = [json.loads(line)['step'] for line in path.read_text().splitlines() if 'lr' in json.loads(line)]
    assert steps == sorted(steps)


class Caught:
    """Warnings of the current logger."""

    def __enter__(self) -> List[str]:
        import logging
        self.lines: List[str] = []
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.lines.append(f'{record.levelname}: {record.getMessage()}')
        MMLogger.get_current_instance().addHandler(self.handler)
        return self.lines

    def __exit__(self, *_: Any) -> None:
        MMLogger.get_current_instance().removeHandler(self.handler)


@pytest.mark.parametrize('norm_cfg, told', [
    (None, False), (dict(type='BN'), False), (dict(type='BN', requires_grad=True), False),
    (dict(type='SyncBN'), True), (dict(type='BN', momentum=0.03, eps=1e-3), True),
    (dict(type='BN', requires_grad=False), True)], ids=str)
def test_a_norm_cfg_that_reaches_the_branches_alone_is_said(norm_cfg: Any, told: bool) -> None:
    cfg = Config(dict(model=dict(backbone=dict(type='DyRepBackbone', input_shape=(8, 8), backbone=dict(
        type='mmpretrain.ResNet_CIFAR', depth=18, num_stages=1, strides=(1, ), dilations=(1, ), out_indices=(0, ),
        stem_channels=4, base_channels=4)))))
    if norm_cfg:
        # as --cfg-options model.backbone.norm_cfg.type=... merges it
        cfg.merge_from_dict({f'model.backbone.norm_cfg.{key}': value for key, value in norm_cfg.items()})
    with Caught() as lines:
        from mmengine.registry import MODELS
        MODELS.build(cfg.model.backbone)
    found = [line for line in lines if 'is that of the new branches alone' in line]
    assert len(found) == told
    assert all(line.startswith('WARNING') and 'model.backbone.backbone.norm_cfg' in line for line in found)
