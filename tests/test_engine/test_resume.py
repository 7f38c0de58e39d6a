"""A DyRep run killed at any iteration and resumed ends with the bytes of one that ran straight through."""
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdyrep.fileio import read_json
from tests.resuming import dyrep_config, killed_and_resumed, run_files
from tests.runs import needs_images, train


@needs_images
@pytest.mark.slow
@pytest.mark.parametrize('ema', [None, dict(momentum=0.1)], ids=['plain', 'ema'])
def test_epoch_loop(tmp_path: Path, ema: Any) -> None:
    assert killed_and_resumed(dyrep_config(ema=ema, workers=1 if ema else 0), tmp_path) == []
    history = read_json(tmp_path / 'resumed' / 'dyrep' / 'history.json')
    assert [update['epoch'] for update in history['updates']] == [1, 2, 3, 4]
    assert sum(len(update['grown']) for update in history['updates']) == 4
    assert any(update['cut'] for update in history['updates'])


@needs_images
@pytest.mark.slow
def test_iteration_loop_in_the_middle_of_an_interval(tmp_path: Path) -> None:
    # killed at 27, it goes on from 25: scores of 22 to 25 come from the checkpoint, batches 25 of the skipped ones
    assert killed_and_resumed(dyrep_config(by_epoch=False, ema=dict(momentum=0.1)), tmp_path, kill_at=27) == []
    history = read_json(tmp_path / 'resumed' / 'dyrep' / 'history.json')
    assert [update['iter'] for update in history['updates']] == [7, 14, 21, 28]
    files = run_files(tmp_path / 'resumed')
    assert set(files) == {'history.json', *(f'structure_{done}.json' for done in (7, 14, 21, 28))}


@needs_images
@pytest.mark.slow
def test_files_later_than_the_checkpoint_go_and_missing_ones_come_back(tmp_path: Path) -> None:
    cfg = dyrep_config()
    assert train(cfg, tmp_path / 'run').returncode == 0
    before = run_files(tmp_path / 'run')
    # elsewhere, from the second epoch, with nothing left to train
    cfg.train_cfg.max_epochs = 2
    done = train(cfg, tmp_path / 'other', '--resume', str(tmp_path / 'run' / 'epoch_2.pth'))
    assert done.returncode == 0, done.stdout[-3000:]
    after = run_files(tmp_path / 'other')
    assert set(after) == {'history.json', 'structure_1.json', 'structure_2.json'}
    assert all(after[f'structure_{number}.json'] == before[f'structure_{number}.json'] for number in (1, 2))
    assert after['history.json']['updates'] == before['history.json']['updates'][:2]
    # in place, the later ones go
    cfg.train_cfg.max_epochs = 2
    done = train(cfg, tmp_path / 'run', '--resume', str(tmp_path / 'run' / 'epoch_2.pth'))
    assert done.returncode == 0, done.stdout[-3000:]
    assert set(run_files(tmp_path / 'run')) == set(after)


@needs_images
@pytest.mark.slow
def test_resume_refuses_another_space(tmp_path: Path) -> None:
    cfg = dyrep_config()
    cfg.train_cfg.max_epochs = 1
    assert train(cfg, tmp_path / 'run').returncode == 0
    cfg.model.backbone.space = 'repvgg'
    cfg.train_cfg.max_epochs = 2
    refused = train(cfg, tmp_path / 'run', '--resume')
    assert refused.returncode != 0
    assert 'resume with the space that the run began with' in refused.stdout


@needs_images
@pytest.mark.slow
def test_a_truncated_last_checkpoint_is_passed_over(tmp_path: Path) -> None:
    cfg = dyrep_config()
    del cfg.default_hooks['random_state']
    assert train(cfg, tmp_path / 'run').returncode == 0
    last = tmp_path / 'run' / 'epoch_4.pth'
    last.write_bytes(last.read_bytes()[:1000])
    cfg.train_cfg.max_epochs = 5
    resumed = train(cfg, tmp_path / 'run', '--resume')
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    assert f'Going on from {tmp_path / "run" / "epoch_3.pth"} instead' in resumed.stdout
    assert len(torch.load(tmp_path / 'run' / 'epoch_5.pth', weights_only=False)['dyrep']['history']['updates']) == 5
