"""What takes a GPU: mixed precision, fused optimizers, NCCL with SyncBN, compiled steps."""
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from mmdyrep.fileio import read_json
from tests.processes import dist_train
from tests.resuming import dyrep_config
from tests.runs import needs_images, train
from tests.steps import dyrep_hook, runner_of

pytestmark = [pytest.mark.gpu, needs_images,
              pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device; this machine has none')]

SGD = dict(type='SGD', lr=0.05, momentum=0.9)
CASES: Dict[str, Dict[str, Any]] = dict(
    fp16=dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=SGD)),
    fp16_clipped=dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=SGD,
                                         clip_grad=dict(max_norm=1.0))),
    bf16=dict(optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16', optimizer=SGD)),
    fp16_fused=dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic',
                                       optimizer=dict(type='AdamW', lr=1e-3, fused=True))))


@pytest.mark.parametrize('name', CASES)
def test_grows_and_keeps_its_function(tmp_path: Path, name: str) -> None:
    cfg = dyrep_config(images=256)
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = 3
    cfg.update(CASES[name])
    runner = runner_of(cfg, tmp_path)
    runner.train()
    updates = dyrep_hook(runner).history.updates
    assert [len(update['grown']) for update in updates] == [1, 1, 1]
    # measured in the precision of the weights, float32
    assert all(update['drift'] < 1e-4 for update in updates)
    assert all(bool(parameter.isfinite().all()) for parameter in runner.model.parameters())


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    # in a process of its own: what is compiled once takes the hooks of all optimizers away (PyTorch 2.1)
    cfg = dyrep_config(images=256, compile=True)
    cfg.train_cfg.max_epochs = 2
    done = train(cfg, tmp_path / 'run')
    assert done.returncode == 0, done.stdout[-3000:]
    history = read_json(tmp_path / 'run' / 'dyrep' / 'history.json')
    assert [len(update['grown']) for update in history['updates']] == [1, 1]


@pytest.mark.slow
def test_nccl_with_one_process_and_sync_bn(tmp_path: Path) -> None:
    cfg = dyrep_config(images=256, sync_bn='torch')
    cfg.train_cfg.max_epochs = 2
    done = dist_train(cfg, tmp_path / 'run', ranks=1)
    assert done.returncode == 0, done.stdout[-3000:]
    history = read_json(tmp_path / 'run' / 'dyrep' / 'history.json')
    assert [len(update['grown']) for update in history['updates']] == [1, 1]
