"""A structure that comes with the initial weights of the whole model, which are loaded after all else is built."""
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdyrep.fileio import write_checkpoint
from tests.dyrep_runs import Record, dyrep_config, runner_of, trained, updates
from tests.runs import needs_images

pytestmark = needs_images
OP = 'layer1.0.conv1'


@pytest.fixture(scope='module')
def augmented(tmp_path_factory) -> Path:
    """Checkpoint of the whole model, with a block and one in it, its norms as training leaves them."""
    folder = tmp_path_factory.mktemp('augmented')
    runner = trained(dyrep_config(dict(dep=None, interval=4), images=64), folder / 'run')
    backbone = runner.model.backbone
    backbone.load_structure({'version': 1, 'ops': {}})
    backbone.expand(OP)
    backbone.expand(f'{OP}.branches.kxk.conv', ['1x1'])
    write_checkpoint(folder / 'augmented.pth', dict(state_dict=runner.model.state_dict(), meta={}))
    return folder / 'augmented.pth'


def config(path: Path, way: str, **changes: Any) -> Any:
    cfg = dyrep_config(dict(dep=None, interval=2), images=64, **changes)
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=3)]
    cfg.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0)
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    if way == 'load_from':
        cfg.load_from = str(path)
    else:
        cfg.model.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    return cfg


@pytest.mark.slow
def test_a_training_from_it_is_that_from_a_loaded_checkpoint(tmp_path: Path, augmented: Path) -> None:
    runs, seen = {}, {}
    for way in ('load_from', 'init_cfg'):
        record = Record(lambda runner: [(group['lr'], len(group['params']))
                                        for group in runner.optim_wrapper.optimizer.param_groups])
        runs[way] = trained(config(augmented, way), tmp_path / way, [record])
        seen[way] = record.seen
    assert seen['init_cfg'] == seen['load_from']
    rates, sizes = (np.array(seen['init_cfg'])[..., part] for part in (0, 1))
    assert rates[0].tolist() == [0.025] * len(rates[0]) and rates[-1].tolist() == [0.05] * len(rates[0])
    assert sizes[0].sum() < sizes[-1].sum()
    left, right = (runs[way].model.state_dict() for way in ('load_from', 'init_cfg'))
    assert list(left) == list(right) and any(f'{OP}.branches.kxk.conv.branches.1x1' in key for key in left)
    assert all(torch.equal(value, right[key]) for key, value in left.items())
    averages = [next(hook for hook in runs[way].hooks if hasattr(hook, 'ema_model')).ema_model.state_dict()
                for way in ('load_from', 'init_cfg')]
    assert all(torch.equal(value, averages[1][key]) for key, value in averages[0].items())
    assert sum(bool(update['grown']) for update in updates(tmp_path / 'init_cfg')) == 2


def test_every_parameter_is_stepped_and_a_resume_goes_on(tmp_path: Path, augmented: Path) -> None:
    cfg = config(augmented, 'init_cfg')
    cfg.default_hooks.checkpoint.interval = 1
    cfg.train_cfg.max_epochs = 1
    first = trained(cfg, tmp_path / 'run')
    block = first.model.backbone.get_submodule(OP)
    state = first.optim_wrapper.optimizer.state
    assert all(parameter in state for parameter in block.parameters())
    start = torch.load(augmented, weights_only=False)['state_dict'][f'backbone.{OP}.branches.1x1.conv.weight']
    assert not torch.equal(block.branches['1x1'].conv.weight, start)
    cfg.train_cfg.max_epochs = 2
    cfg.resume = True
    cfg.load_from = str(tmp_path / 'run' / 'epoch_1.pth')
    again = trained(cfg, tmp_path / 'resumed')
    cfg.resume, cfg.load_from = False, None
    straight = trained(cfg, tmp_path / 'straight')
    assert again.model.backbone.structure == straight.model.backbone.structure
    optimizers = [runner.optim_wrapper.optimizer for runner in (again, straight)]
    assert len(optimizers[0].state) == len(optimizers[1].state)
    known = {parameter for group in optimizers[0].param_groups for parameter in group['params']}
    assert known == set(again.model.parameters())


def test_a_plain_file_for_the_whole_model_changes_nothing_of_this(tmp_path: Path, augmented: Path) -> None:
    runner = runner_of(dyrep_config(None, images=64), tmp_path / 'plain')
    write_checkpoint(tmp_path / 'plain.pth', dict(state_dict=runner.model.state_dict(), meta={}))
    done = trained(config(tmp_path / 'plain.pth', 'init_cfg'), tmp_path / 'run')
    assert len(done.model.backbone.structure['ops']) == 2
