"""A training whose step is compiled ends with the weights of one that is not."""
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from mmdyrep.fileio import read_checkpoint, read_json
from tests.resuming import dyrep_config
from tests.runs import needs_images, train


def trained(work_dir: Path, compilations: int, **changes: Any) -> Dict[str, torch.Tensor]:
    """Weights after three epochs, each with a growth.

    In a process of its own: what is compiled once takes the hooks of all optimizers away (PyTorch 2.1).
    """
    cfg = dyrep_config(images=96, hook=dict(dep=None))
    cfg.param_scheduler = []
    cfg.train_cfg.max_epochs = 3
    cfg.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
    cfg.merge_from_dict(changes)
    done = train(cfg, work_dir)
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count('Model has been "compiled"') == compilations
    history = read_json(work_dir / 'dyrep' / 'history.json')
    assert [len(update['grown']) for update in history['updates']] == [1, 1, 1]
    return read_checkpoint(work_dir / 'epoch_3.pth')['state_dict']


@needs_images
@pytest.mark.slow
def test_compiled_anew_after_each_change(tmp_path: Path) -> None:
    expected = trained(tmp_path / 'eager', 0)
    found = trained(tmp_path / 'compiled', 4, compile=dict(backend='eager'))
    assert list(found) == list(expected)
    for name, value in found.items():
        assert torch.allclose(value.double(), expected[name].double(), rtol=1e-4, atol=1e-5), name
