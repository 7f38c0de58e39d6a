"""Blocks without the norm behind them in real trainings, growth inside of them included."""
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdyrep.fileio import read_json
from tests.dyrep_runs import dyrep_config as grown_config, trained
from tests.processes import dist_train, ranks_config, read_ranks
from tests.resuming import dyrep_config, killed_and_resumed
from tests.runs import differences, needs_images

pytestmark = needs_images


def without_norms(cfg: Any) -> Any:
    cfg.model.backbone.update(static=True, keep_norm=False, space='repvgg', input_shape=(28, 28))
    return cfg


def test_branches_grow_in_it_and_the_averaged_copy_follows(tmp_path: Path) -> None:
    cfg = without_norms(grown_config(dict(metric='snip_bn', num_grow=2, dep=dict(threshold=0.0)), images=64))
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    runner = trained(cfg, tmp_path)
    entries = read_json(tmp_path / 'dyrep' / 'history.json')['updates']
    assert all(len(entry['grown']) == 2 for entry in entries) and any(entry['cut'] for entry in entries)
    assert max(max(entry['drift'], entry['drift_ema']) for entry in entries) < 1e-5
    assert all('.branches.' in item['op'] for entry in entries for item in entry['grown'])
    norm = runner.model.backbone.bn1
    assert torch.equal(norm.weight, torch.ones_like(norm.weight)) and not norm.running_mean.any()


def test_an_op_that_grows_anew_leaves_its_norm_out_in_the_copy_too(tmp_path: Path) -> None:
    cfg = grown_config(dict(metric='snip_bn', dep=None), images=64)
    # one block from the start, the others grow
    cfg.model.backbone.update(keep_norm=False, max_depth=1, input_shape=(28, 28),
                              structure=dict(version=1, ops={'conv1': ['kxk', '1x1']}))
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    trained(cfg, tmp_path)
    entries = read_json(tmp_path / 'dyrep' / 'history.json')['updates']
    assert all(len(entry['grown']) == 1 for entry in entries)
    assert max(max(entry['drift'], entry['drift_ema']) for entry in entries) < 1e-5


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    cfg = without_norms(dyrep_config(ema=dict(momentum=0.1)))
    assert killed_and_resumed(cfg, tmp_path) == []


@pytest.mark.slow
def test_two_ranks_do_not_wait_for_gradients_of_what_is_left_out(tmp_path: Path) -> None:
    cfg = without_norms(ranks_config(tmp_path / 'ranks', ema=dict(momentum=0.1)))
    done = dist_train(cfg, tmp_path / 'run')
    assert done.returncode == 0, done.stdout[-3000:]
    left, right = read_ranks(tmp_path / 'ranks')
    assert not left['wrappers'][0]['find_unused_parameters']
    assert differences(left['epochs'], right['epochs']) == []
    assert len(left['iterations']) == 16
