"""Trainings whose new branches start otherwise (`branch_init`): function kept, EMA's too, resume, two processes."""
from pathlib import Path
from typing import Any, Dict

import pytest
from mmengine.config import Config

from mmdyrep.fileio import read_json
from mmdyrep.models.finding import find_backbone
from mmdyrep.reparam import blocks_of
from tests.configs import CONFIGS
from tests.dyrep_runs import dyrep_config, trained, updates
from tests.processes import dist_train, ranks_config, read_ranks
from tests.resuming import dyrep_config as resumable, killed_and_resumed
from tests.runs import differences, needs_images

pytestmark = needs_images

RECOMMENDED = Config.fromfile(CONFIGS / '_base_' / 'dyrep_recommended.py')


@pytest.mark.parametrize('online', [False, True])
def test_updates_move_nothing_and_branches_are_of_the_size_of_what_they_took(tmp_path: Path, online: bool) -> None:
    start = dict(type='split', noise=0.2)
    cfg = dyrep_config(dict(metric='snip_bn', num_grow=2, dep=None), backbone=dict(branch_init=start, online=online),
                       images=64)
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1), *cfg.get('custom_hooks', [])]
    backbone = find_backbone(trained(cfg, tmp_path).model)[1]
    told = read_json(tmp_path / 'dyrep' / 'history.json')['settings']
    assert (told['branch_init'], told['gamma_init'], told['online']) == (start, 0.01, online)
    assert [len(entry['grown']) for entry in updates(tmp_path)] == [2] * 4
    assert all(entry['drift'] < 1e-4 and entry['drift_ema'] < 1e-4 for entry in updates(tmp_path))
    # the whole kernel behind an identity: alpha; on images parts of it are anything between
    gammas = [float(block.branches['1x1_kxk'].bn.weight.abs().mean()) for block in blocks_of(backbone).values()
              if '1x1_kxk' in block.added]
    assert len(gammas) == 8 and min(gammas) > 0.1 and max(gammas) < 0.6, gammas


@pytest.mark.slow
@pytest.mark.parametrize('backbone', [
    RECOMMENDED.recommended_backbone, dict(branch_init='split'), dict(branch_init='normal')],
                         ids=['recommended', 'split', 'normal'])
def test_killed_and_resumed_bit_for_bit(tmp_path: Path, backbone: Dict[str, Any]) -> None:
    cfg = resumable(ema=dict(momentum=0.1))
    cfg.model.backbone.update(backbone)
    assert killed_and_resumed(cfg, tmp_path) == []


@pytest.mark.slow
def test_two_processes_hold_the_same_network_with_the_recommended_settings(tmp_path: Path) -> None:
    cfg = ranks_config(tmp_path / 'ranks', ema=dict(momentum=0.1))
    cfg.model.backbone.update(RECOMMENDED.recommended_backbone)
    cfg.default_hooks.dyrep.update({key: RECOMMENDED.recommended_hook[key] for key in ('num_grow', 'metric', 'dep')})
    done = dist_train(cfg, tmp_path / 'run')
    assert done.returncode == 0, done.stdout[-3000:]
    left, right = read_ranks(tmp_path / 'ranks')
    assert left['epochs'] and differences(left['epochs'], right['epochs']) == []
    assert differences(left['iterations'], right['iterations']) == []
    assert all(entry['grown'] and entry['drift'] < 1e-4 for entry in updates(tmp_path / 'run'))
