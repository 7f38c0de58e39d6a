"""DyRep in two real processes: the ranks hold the same network, and a resumed run ends with the same bytes."""
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdyrep.fileio import read_json
from tests.processes import dist_train, ranks_config, read_ranks, start
from tests.resuming import SAVED, run_files, without_seconds
from tests.runs import differences, needs_images

pytestmark = [needs_images, pytest.mark.slow]
WRAPPER = dict(type='MMDistributedDataParallel', find_unused_parameters=True, broadcast_buffers=True)


def saved_differences(left: Path, right: Path) -> list:
    """Differences between two checkpoints, times left out."""
    first, second = (torch.load(path, map_location='cpu', weights_only=False) for path in (left, right))
    assert set(first) == set(second)
    return [line for key in SAVED if key in first
            for line in differences(without_seconds(first[key]) if key == 'dyrep' else first[key],
                                    without_seconds(second[key]) if key == 'dyrep' else second[key], key)]


@pytest.fixture(scope='module')
def straight(tmp_path_factory: Any) -> Path:
    """An epoch run with EMA and a communication hook."""
    folder = tmp_path_factory.mktemp('straight')
    cfg = ranks_config(folder / 'ranks', comm_hook=True, ema=dict(momentum=0.1), model_wrapper_cfg=WRAPPER)
    done = dist_train(cfg, folder / 'run')
    assert done.returncode == 0, done.stdout[-3000:]
    (folder / 'output.txt').write_text(done.stdout)
    return folder


def test_ranks_hold_the_same_model_and_averaged_model_after_every_update(straight: Path) -> None:
    left, right = read_ranks(straight / 'ranks')
    assert len(left['epochs']) == 2 and all(len(models) == 2 for models in left['epochs'])
    assert differences(left['epochs'], right['epochs']) == []
    assert differences(left['iterations'], right['iterations']) == []
    # on different images
    assert len(left['images']) == 16 and not set(left['images']) & set(right['images'])
    # and new parameters learn
    grown = [name for name in left['iterations'][8] if name not in left['iterations'][0]]
    assert grown
    # what an inner norm adds is taken out by the norm behind it: it gets no gradient
    learning = [name for name in grown if not name.endswith('.bn1.bias')]
    assert all(not torch.equal(left['iterations'][8][name], left['iterations'][15][name]) for name in learning)


def test_the_model_is_wrapped_anew_as_it_was_and_the_old_wrapper_is_freed(straight: Path) -> None:
    for rank in read_ranks(straight / 'ranks'):
        assert len(rank['wrappers']) == 3 and rank['alive'] == 1
        assert all(wrapper == dict(WRAPPER, static_graph=False, parameters=0) for wrapper in rank['wrappers'])
        # the communication hook is called for the new wrapper's buckets, too
        assert rank['calls'][1] >= rank['calls'][0] + 8 and rank['calls'][0] >= 8


def test_files_and_log_are_written_once(straight: Path) -> None:
    output = (straight / 'output.txt').read_text()
    assert output.count('ops can be expanded') == 1
    assert output.count('DyRep [epoch 1]: MACs') == 1
    assert len(list((straight / 'run').glob('20*/*.log'))) == 1
    assert set(run_files(straight / 'run')) == {'history.json', 'structure_1.json', 'structure_2.json'}
    assert [len(update['grown']) for update in read_json(straight / 'run' / 'dyrep' / 'history.json')['updates']] == [
        1, 1]


def test_a_terminated_launcher_ends_its_processes_and_the_run_resumes(straight: Path, tmp_path: Path) -> None:
    cfg = ranks_config(tmp_path / 'ranks', comm_hook=True, ema=dict(momentum=0.1), model_wrapper_cfg=WRAPPER)
    cfg.dump(tmp_path / 'run.py')
    launcher = start('dist_train.sh', tmp_path / 'run.py', 2, '--work-dir', tmp_path / 'run')
    while launcher.poll() is None and not (tmp_path / 'run' / 'epoch_1.pth').exists():
        time.sleep(0.02)
    launcher.send_signal(signal.SIGTERM)
    # the pipe is open until the last of its processes has ended
    output = launcher.communicate(timeout=120)[0]
    assert launcher.returncode != 0 and 'SIGTERM' in output, output[-3000:]
    assert not (tmp_path / 'run' / 'epoch_2.pth').exists()
    done = dist_train(cfg, tmp_path / 'run', '--resume')
    assert done.returncode == 0 and 'resumed epoch: 1' in done.stdout, done.stdout[-3000:]
    assert saved_differences(straight / 'run' / 'epoch_2.pth', tmp_path / 'run' / 'epoch_2.pth') == []
    assert differences(run_files(straight / 'run'), run_files(tmp_path / 'run')) == []


def test_an_epoch_run_resumed_ends_with_the_same_bytes(straight: Path, tmp_path: Path) -> None:
    cfg = ranks_config(tmp_path / 'ranks', comm_hook=True, ema=dict(momentum=0.1), model_wrapper_cfg=WRAPPER)
    done = dist_train(cfg, tmp_path / 'run', '--resume', str(straight / 'run' / 'epoch_1.pth'))
    assert done.returncode == 0, done.stdout[-3000:]
    assert saved_differences(straight / 'run' / 'epoch_2.pth', tmp_path / 'run' / 'epoch_2.pth') == []
    assert differences(run_files(straight / 'run'), run_files(tmp_path / 'run')) == []
    first, second = read_ranks(straight / 'ranks'), read_ranks(tmp_path / 'ranks')
    for rank in range(2):
        assert differences(first[rank]['epochs'][1:], second[rank]['epochs']) == []
        assert first[rank]['images'][8:] == second[rank]['images']


def test_a_rank_that_dies_ends_the_run_and_resumed_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    wrapper = dict(type='MMDistributedDataParallel', static_graph=True, broadcast_buffers=False)
    cfg = ranks_config(tmp_path / 'ranks', by_epoch=False, model_wrapper_cfg=wrapper)
    done = dist_train(cfg, tmp_path / 'straight')
    assert done.returncode == 0, done.stdout[-3000:]
    left, right = read_ranks(tmp_path / 'ranks')
    assert differences(left['iterations'], right['iterations']) == []
    assert [(item['static_graph'], item['broadcast_buffers']) for item in left['wrappers']] == [(True, False)] * 3

    dying = ranks_config(by_epoch=False, model_wrapper_cfg=wrapper, custom_hooks=[dict(type='KillHook', at=12, rank=1)])
    begin = time.monotonic()
    killed = dist_train(dying, tmp_path / 'run')
    assert killed.returncode not in (0, None) and time.monotonic() - begin < 120
    assert 'Signal 9 (SIGKILL)' in killed.stdout and 'rank      : 1' in killed.stdout
    assert (tmp_path / 'run' / 'last_checkpoint').read_text().endswith('iter_10.pth')

    resumed = dist_train(cfg, tmp_path / 'run', '--resume')
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    assert saved_differences(tmp_path / 'straight' / 'iter_16.pth', tmp_path / 'run' / 'iter_16.pth') == []
    assert differences(run_files(tmp_path / 'straight'), run_files(tmp_path / 'run')) == []


def test_ranks_with_different_numbers_of_batches_are_refused(tmp_path: Path) -> None:
    cfg = ranks_config(tmp_path / 'ranks', train_dataloader=dict(
        sampler=dict(round_up=False), dataset=dict(indices=81), batch_size=8))
    refused = dist_train(cfg, tmp_path / 'run')
    assert refused.returncode != 0
    assert 'the ranks have [6, 5] batches an epoch' in refused.stdout, refused.stdout[-3000:]
    assert 'Epoch(train)' not in refused.stdout
