"""Trainings with `online=True`: updates calibrate all blocks and keep the function, history, resume, EMA."""
import json
from pathlib import Path

import pytest
import torch

from mmdyrep.models.finding import find_backbone
from mmdyrep.reparam import merging
from mmdyrep.reparam.online import missing, norms_in
from mmdyrep.reparam.surgery import outer_blocks
from tests.dyrep_runs import AroundUpdates, dyrep_config, history, log_lines, runner_of, trained, updates
from tests.processes import dist_train, ranks_config, read_ranks
from tests.resuming import dyrep_config as resumable, killed_and_resumed
from tests.runs import differences, needs_images

ONLINE = dict(online=True)


def ema(cfg):
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1), *cfg.get('custom_hooks', [])]
    return cfg


@needs_images
def test_an_update_calibrates_what_was_there_and_moves_nothing(tmp_path: Path) -> None:
    statistics = []

    def look(runner) -> None:
        backbone = find_backbone(runner.model)[1]
        statistics.append({name: norm.running_var.clone() for op, block in outer_blocks(backbone).items()
                           for name, norm in block.named_modules(prefix=op) if norm in norms_in(block)})
        assert not missing(backbone)
        for block in outer_blocks(backbone).values():
            assert not any(norm.training for norm in norms_in(block)) and not merging.why_branchwise(block)

    cfg = ema(dyrep_config(dict(metric='snip_bn', num_grow=2, dep=None), backbone=ONLINE))
    trained(cfg, tmp_path, [AroundUpdates(look, look)])
    assert len(updates(tmp_path)) == 4
    assert all(entry['drift'] < 1e-5 and entry['drift_ema'] < 1e-5 for entry in updates(tmp_path))
    before, after = statistics[2::2], statistics[3::2]
    for old, new in zip(before, after):
        assert set(old) <= set(new) and len(new) > len(old)
        assert all(not torch.equal(old[name], new[name]) for name in old)
    # between updates they stay
    for old, new in zip(statistics[1:-1:2], statistics[2::2]):
        assert all(torch.equal(old[name], new[name]) for name in new)


@needs_images
def test_history_and_log_tell_the_branches_macs_and_what_is_executed(tmp_path: Path) -> None:
    trained(dyrep_config(dict(metric='snip_bn', dep=None), backbone=ONLINE), tmp_path / 'online')
    found = history(tmp_path / 'online')
    start = found['start']['macs']
    assert found['settings']['online'] and found['start']['executed'] == start
    for entry in found['updates']:
        assert entry['executed'] == start and entry['macs']['model'] > start['model']
    assert found['average']['executed'] == start and found['average']['macs']['model'] > start['model']
    lines = log_lines(tmp_path / 'online')
    assert any('of branches,' in line and 'executed' in line and 'average' not in line for line in lines)
    assert 'executed' in lines[-1]
    trained(dyrep_config(dict(metric='snip_bn', dep=None)), tmp_path / 'paper')
    assert 'executed' not in json.dumps(history(tmp_path / 'paper'))
    assert not any('executed' in line for line in log_lines(tmp_path / 'paper'))


@needs_images
def test_a_run_is_resumed_with_its_own_setting_alone(tmp_path: Path) -> None:
    cfg = dyrep_config(dict(metric='snip_bn'), backbone=ONLINE)
    cfg.default_hooks.checkpoint.interval = 1
    cfg.train_cfg.max_epochs = 2
    trained(cfg, tmp_path / 'run')
    other = dyrep_config(dict(metric='snip_bn'))
    other.load_from, other.resume = str(tmp_path / 'run' / 'epoch_2.pth'), True
    with pytest.raises(ValueError, match=r'online=True\), the config has online=False'):
        runner_of(other, tmp_path / 'other').train()
    # a new run may start from its weights
    other.resume = False
    other.train_cfg.max_epochs = 1
    trained(other, tmp_path / 'new')


@needs_images
@pytest.mark.parametrize('began', [True, False])
def test_so_is_a_static_run_without_dyrep_hook(tmp_path: Path, began: bool) -> None:
    def static(online: bool):
        cfg = dyrep_config(backbone=dict(online=online, static=True, space='dbb'))
        cfg.default_hooks.checkpoint.interval = 1
        cfg.train_cfg.max_epochs = 1
        return cfg

    trained(static(began), tmp_path / 'run')
    other = static(not began)
    other.load_from, other.resume, other.train_cfg.max_epochs = str(tmp_path / 'run' / 'epoch_1.pth'), True, 2
    with pytest.raises(ValueError, match=rf'online={began}\), the config has online={not began}'):
        runner_of(other, tmp_path / 'other').train()
    other.resume, other.train_cfg.max_epochs = False, 1
    trained(other, tmp_path / 'new')
    same = static(began)
    same.load_from, same.resume, same.train_cfg.max_epochs = str(tmp_path / 'run' / 'epoch_1.pth'), True, 2
    assert trained(same, tmp_path / 'same').epoch == 2


@needs_images
def test_a_static_run_calibrates_on_its_first_batch_and_is_repeated_to_the_bit(tmp_path: Path) -> None:
    def run(name: str):
        cfg = dyrep_config(backbone=dict(online=True, static=True, space='dbb'))
        cfg.train_cfg.max_epochs = 1
        return trained(ema(cfg), tmp_path / name).model

    first, again = run('first'), run('again')
    assert not missing(find_backbone(first)[1])
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))


@needs_images
@pytest.mark.slow
def test_killed_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    cfg = resumable(ema=dict(momentum=0.1))
    cfg.model.backbone.online = True
    assert killed_and_resumed(cfg, tmp_path) == []


@needs_images
@pytest.mark.slow
def test_a_static_run_killed_and_resumed_bit_for_bit(tmp_path: Path) -> None:
    cfg = resumable(ema=dict(momentum=0.1))
    cfg.model.backbone.update(online=True, static=True)
    del cfg.default_hooks['dyrep']
    assert killed_and_resumed(cfg, tmp_path) == []


@needs_images
@pytest.mark.slow
def test_two_processes_hold_the_same_network(tmp_path: Path) -> None:
    # statistics of the first batch included, which are those of both
    cfg = ranks_config(tmp_path / 'ranks', ema=dict(momentum=0.1))
    cfg.model.backbone.update(online=True, static=True, space='dbb')
    cfg.default_hooks.dyrep.update(dep=None)
    done = dist_train(cfg, tmp_path / 'run')
    assert done.returncode == 0, done.stdout[-3000:]
    left, right = read_ranks(tmp_path / 'ranks')
    assert left['epochs'] and differences(left['epochs'], right['epochs']) == []
    assert differences(left['iterations'], right['iterations']) == []
