"""A search that dies in any phase and is resumed ends with the bytes of one that ran straight through."""
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from mmdyrep.fileio import read_checkpoint, read_json
from tests.dyrep_runs import trained
from tests.processes import dist_train, read_ranks
from tests.repnas_runs import repnas_config
from tests.resuming import SAVED, killed_and_resumed, run_files, without_seconds
from tests.runs import differences, needs_images

pytestmark = needs_images


class Died(Exception):
    """The training is over before its time."""


class Dies(Hook):
    """Ends the training after an iteration, counted from 1, before anything is saved."""

    priority = 'HIGHEST'

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter + 1 == self.at:
            raise Died


def found(straight: Path, resumed: Path, last: str) -> List[str]:
    """Differences between two runs' last checkpoints and files."""
    left, right = (read_checkpoint(folder / last) for folder in (straight, resumed))
    assert set(left) == set(right)
    lines = [line for key in SAVED if key in left
             for line in differences(without_seconds(left[key]) if key == 'dyrep' else left[key],
                                     without_seconds(right[key]) if key == 'dyrep' else right[key], key)]
    return lines + differences(run_files(straight), run_files(resumed), 'files')


@pytest.fixture(scope='module')
def straight(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """Straight runs: by epochs, and by iterations with checkpoints between the borders of the phases."""
    folder = tmp_path_factory.mktemp('straight')
    configs = dict(
        epochs=repnas_config(ema=dict(momentum=0.1), images=128, hook=dict(constraint=9)),
        iterations=repnas_config(by_epoch=False, ema=dict(momentum=0.1), hook=dict(interval=3),
                                 backbone=dict(keep_norm=True)))
    for name, cfg in configs.items():
        trained(cfg, folder / name)
    return dict(folder=folder, **configs)


# epochs of 4 iterations: warm-up in the first, search in the second; iterations: to 8 and to 16, a checkpoint every 5
@pytest.mark.parametrize(('name', 'at', 'start'), [
    ('epochs', 6, 'epoch_1.pth'), ('epochs', 10, 'epoch_2.pth'), ('epochs', 14, 'epoch_3.pth'),
    ('iterations', 7, 'iter_5.pth'), ('iterations', 14, 'iter_10.pth'), ('iterations', 19, 'iter_15.pth'),
    ('iterations', 23, 'iter_20.pth')])
def test_resumed_in_each_phase_bit_for_bit(straight, tmp_path, name, at, start):
    cfg: Config = straight[name]
    with pytest.raises(Died):
        trained(cfg, tmp_path / 'run', [Dies(at)])
    assert (tmp_path / 'run' / 'last_checkpoint').read_text().endswith(start)
    again = Config(cfg.to_dict())
    again.resume = True
    trained(again, tmp_path / 'run')
    last = 'epoch_4.pth' if name == 'epochs' else 'iter_32.pth'
    assert found(straight['folder'] / name, tmp_path / 'run', last) == []
    # there is something that could differ
    saved = read_checkpoint(straight['folder'] / name / start)
    search = saved['dyrep']['repnas']['architecture']
    assert (search is None) == (start in ('epoch_2.pth', 'epoch_3.pth', 'iter_20.pth'))
    steps = {'iter_10.pth': 2, 'iter_15.pth': 7}.get(start)
    assert steps is None or (search['alpha'].any() and search['optimizer']['state'][0]['step'] == steps)


@pytest.mark.slow
def test_killed_and_resumed_in_the_search(tmp_path):
    assert killed_and_resumed(repnas_config(ema=dict(momentum=0.1), workers=1, hook=dict(search=2)), tmp_path) == []
    entries = read_json(tmp_path / 'resumed' / 'dyrep' / 'history.json')['updates']
    assert [entry['phase'] for entry in entries] == ['search', 'end of the search']


@pytest.mark.slow
@pytest.mark.parametrize('counts', [1, 2])
def test_two_processes_run_the_same_branches_and_average_gradients(tmp_path, counts):
    cfg = repnas_config(ema=dict(momentum=0.1), batch=16, model=dict(head=dict(dropout_rate=0.0)),
                        hook=dict(constraint=9), train_cfg=dict(max_epochs=3))
    cfg.optim_wrapper.clip_grad = None
    cfg.optim_wrapper.accumulative_counts = counts
    cfg.custom_imports.imports += ['tests.processes', 'tests.repnas_runs']
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='WatchRanks', folder=str(tmp_path / 'ranks')),
                        dict(type='SearchSpy', folder=str(tmp_path / 'search'))]
    done = dist_train(cfg, tmp_path / 'run')
    assert done.returncode == 0, done.stdout[-3000:]
    left, right = read_ranks(tmp_path / 'ranks')
    assert left['epochs'] and differences(left['epochs'], right['epochs']) == []
    assert differences(left['iterations'], right['iterations']) == []
    assert left['images'] != right['images']
    one, other = read_ranks(tmp_path / 'search')
    for key in ('mask', 'ranks', 'alpha'):
        assert differences([item.get(key) for item in one['seen']], [item.get(key) for item in other['seen']]) == []
    assert sorted(one['steps']) == list(range(8 + counts - 1, 16, counts))
    for last, used in one['steps'].items():
        local = [item['local'] for item in one['seen'] + other['seen'] if last - counts < item['iter'] <= last]
        assert len(local) == 2 * counts
        wanted = sum(local) / len(local)
        assert (used - wanted).abs().max() < 1e-3 * wanted.abs().max() < (local[0] - local[-1]).abs().max()
        assert torch.equal(used, other['steps'][last])
    # parameters without gradient are waited for as long as branches change, no longer
    assert one['wrappers'] == [True] * 16 + [False] * 8
