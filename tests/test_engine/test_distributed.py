"""Two processes (gloo) stay one network, and resume as one."""
import os
import socket
import subprocess
import sys
import time

import pytest
import torch

from mmdyrep.engine.distributed import check_wrapper

from ..runs import ROOT, differences, needs_images, small_config

pytestmark = [pytest.mark.slow, needs_images]


def config(**changes):
    cfg = small_config(images=128, batch=16, **changes)
    cfg.custom_imports.imports.append('tests.ranks')
    cfg.model.backbone = dict(type='DyRepBackbone', backbone=cfg.model.backbone)
    cfg.default_hooks.dyrep = dict(type='DyRepHook', interval=1, calibration_batches=2, dep=dict(threshold=0.001))
    cfg.default_hooks.ranks = dict(type='RankHook')
    cfg.train_cfg.max_epochs = 3
    return cfg


def start(cfg, work_dir, *arguments):
    path = work_dir.parent / f'{work_dir.name}.py'
    cfg.dump(path)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    return subprocess.Popen(
        ['bash', 'tools/dist_train.sh', str(path), '2', '--work-dir', str(work_dir), *arguments], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, 'PYTHON': sys.executable, 'PORT': str(port), 'OMP_NUM_THREADS': '1'})


def run(cfg, work_dir, *arguments):
    process = start(cfg, work_dir, *arguments)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def ranks_of(work_dir):
    return [torch.load(work_dir / f'rank_{rank}.pth') for rank in (0, 1)]


# running statistics are each rank's own between updates, as mmengine has it
def learned(state):
    return {key: value for key, value in state.items() if 'running_' not in key and 'num_batches' not in key}


@pytest.mark.parametrize('options', [
    {}, dict(find_unused_parameters=True), dict(model_wrapper_cfg=dict(broadcast_buffers=True, static_graph=True))])
def test_ranks_end_with_the_same_structure_and_weights_from_unequal_data(tmp_path, options):
    cfg = config()
    cfg.merge_from_dict(options)
    code, output = run(cfg, tmp_path / 'run')
    assert code == 0, output
    first, second = ranks_of(tmp_path / 'run')
    assert first['losses'] != second['losses']
    assert first['wrapper'] == 'MMDistributedDataParallel'
    assert first['structure'] == second['structure'] and first['structure']['ops']
    assert differences(learned(first['state']), learned(second['state'])) == []
    # gradients of the new branches were reduced: equal though trained on unequal data, and no longer at gamma_init
    gammas = [value for key, value in first['state'].items() if '.branches.' in key and key.endswith('.bn.weight')]
    assert any((gamma - gamma.mean()).abs().max() > 1e-5 for gamma in gammas)
    assert output.count('DyRep [epoch 1]: expanded') == 1, 'one process alone writes the log'


def test_killed_and_resumed_equals_the_straight_run(tmp_path):
    code, output = run(config(), tmp_path / 'straight')
    assert code == 0, output
    cfg = config()
    cfg.custom_hooks = [dict(type='KillHook', at=10)]
    code, output = run(cfg, tmp_path / 'killed')
    assert code != 0 and 'Signal 9 (SIGKILL)' in output
    cfg.custom_hooks = []
    code, output = run(cfg, tmp_path / 'killed', '--resume')
    assert code == 0, output
    for straight, resumed in zip(ranks_of(tmp_path / 'straight'), ranks_of(tmp_path / 'killed')):
        assert straight['structure'] == resumed['structure']
        assert differences(learned(straight['state']), learned(resumed['state'])) == []


def test_rank_that_differs_is_noticed(tmp_path):
    cfg = config()
    cfg.default_hooks.ranks.spoil = True
    code, output = run(cfg, tmp_path / 'run')
    assert code != 0 and 'has different values in the processes after an update' in output


def test_rank_that_dies_ends_the_others(tmp_path):
    cfg = config()
    cfg.train_cfg.max_epochs = 200
    process = start(cfg, tmp_path / 'run')
    children = []
    deadline = time.time() + 120
    while time.time() < deadline and not (tmp_path / 'run' / 'last_checkpoint').exists():
        time.sleep(0.5)
    children = subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    subprocess.run(['kill', '-9', children[1]], check=True)
    output, _ = process.communicate(timeout=90)
    assert process.returncode != 0 and 'Signal 9 (SIGKILL)' in output


def test_wrappers_that_shard_are_refused():
    from mmengine.model import MMFullyShardedDataParallel
    model = MMFullyShardedDataParallel.__new__(MMFullyShardedDataParallel)
    with pytest.raises(ValueError, match='MMFullyShardedDataParallel.*shards'):
        check_wrapper(model)
