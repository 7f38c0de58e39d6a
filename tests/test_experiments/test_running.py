"""Runs go on where they were ended, what is done is not done again, a failure does not stop the others."""
import json
import os
import signal
import subprocess
import sys
import time
from ast import literal_eval
from pathlib import Path
from typing import Any, Dict, List

import pytest

from mmdyrep.experiments import EXPERIMENTS, STUDIES
from mmdyrep.experiments.jobs import RESULT, commands, jobs_of, share_done, slug
from tests.runs import DATA, ROOT, needs_images

TINY = ['train_cfg.max_epochs=2', 'param_scheduler.T_max=2', 'train_dataloader.dataset.indices=128',
        'val_dataloader.dataset.indices=64', 'test_dataloader.dataset.indices=64', 'train_dataloader.num_workers=0',
        'val_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
        'val_dataloader.persistent_workers=False']


def tool(*arguments: Any, options: List[str] = TINY) -> List[str]:
    data = [f'{part}_dataloader.dataset.data_root={DATA}' for part in ('train', 'val', 'test')]
    return [sys.executable, str(ROOT / 'tools' / 'run_experiment.py'), *map(str, arguments),
            *(['--cfg-options', *options, *data] if options else [])]


def settings() -> Dict[str, Any]:
    """What the tool makes of the options, the name of a run's folder depends on it."""
    data = {f'{part}_dataloader.dataset.data_root': str(DATA) for part in ('train', 'val', 'test')}
    return {**{key: literal_eval(value) for key, value in (option.split('=') for option in TINY)}, **data}


def run(*arguments: Any, options: List[str] = TINY) -> subprocess.CompletedProcess:
    return subprocess.run(tool(*arguments, options=options), cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'COLUMNS': '200'})


def test_list_has_one_name_a_line_the_studies_last():
    done = run('--list', options=[])
    assert done.returncode == 0 and done.stdout.split('\n')[:-1] == [*EXPERIMENTS, *STUDIES]
    # between the two where people read both
    both = subprocess.run(tool('--list', options=[]), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}).stdout
    assert f'{list(EXPERIMENTS)[-1]}\nStudies of this package, with --small:\n{list(STUDIES)[0]}\n' in both


@pytest.mark.parametrize('arguments, message', [
    (['table99', '--small'], "there is no experiment 'table99'; there are table1"),
    (['table6', '--small', '--seeds', '0'], '--seeds must be at least 1'),
])
def test_what_can_not_be_is_refused_in_words(arguments, message, tmp_path):
    done = run(*arguments, '--work-dir', tmp_path, options=[])
    assert done.returncode != 0 and message in done.stderr and 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())


def test_full_size_prints_commands_for_a_cluster(tmp_path):
    done = run('table6', '--work-dir', tmp_path, '--seeds', '2', options=[])
    lines = [line for line in done.stdout.splitlines() if line.startswith('bash tools/dist_train.sh')]
    assert done.returncode == 0 and len(lines) == 6
    assert 'configs/dyrep/vgg16_1xb128_cifar10.py 1 --work-dir' in lines[1] and 'randomness.seed=1' in lines[1]
    assert 'default_hooks.dyrep.dep=None' in lines[2] and 'randomness.seed=2' in lines[5]
    slurm = run('table6', '--work-dir', tmp_path, '--slurm', 'gpu', '--gpus', '4', options=[]).stdout
    assert slurm.startswith('GPUS=4 bash tools/slurm_train.sh gpu table6-origin-1 ')


def test_jobs_have_a_folder_of_their_own_and_their_seed():
    jobs = jobs_of(EXPERIMENTS['table6'].small, 2, Path('runs'), {'a.b': 1})
    assert len({job.folder for job in jobs}) == len(jobs) == 6
    assert [job.seed for job in jobs] == [1, 1, 1, 2, 2, 2] and slug('DyRep w/o Dep') == 'dyrep-without-dep'
    (_, arguments), = commands(jobs[2], ROOT)
    assert 'default_hooks.dyrep.dep=None' in arguments and 'a.b=1' in arguments


@needs_images
@pytest.mark.slow
def test_a_small_experiment_is_killed_goes_on_fails_in_part_and_is_reported(tmp_path):
    begun = subprocess.Popen(tool('table6', '--small', '--work-dir', tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL,
                             env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    folder = tmp_path / 'small' / 'table6'
    jobs = jobs_of(EXPERIMENTS['table6'].small, 1, folder.parent / 'runs', settings())
    for _ in range(600):
        if jobs[0].done and (jobs[1].folder / 'last_checkpoint').exists():
            break
        time.sleep(0.2)
        assert begun.poll() is None
    begun.send_signal(signal.SIGTERM)
    begun.wait(60)
    assert jobs[0].done and not jobs[2].done
    # the training has ended with it
    assert subprocess.run(['pgrep', '-f', f'train.py.*{tmp_path}']).returncode == 1
    first = (jobs[0].folder / RESULT).read_text()

    refused = run('table6', '--small', '--work-dir', tmp_path)
    assert refused.returncode != 0 and 'give --resume to go on' in refused.stderr
    # the third can not work
    jobs[2].folder.mkdir(parents=True, exist_ok=True)
    (jobs[2].folder / 'last_checkpoint').write_text(str(tmp_path / 'nowhere.pth'))
    done = run('table6', '--small', '--work-dir', tmp_path, '--resume')
    assert done.returncode == 1 and 'FAILED' in done.stdout
    assert (jobs[0].folder / RESULT).read_text() == first and jobs[1].done and share_done(jobs[1], 2) == 1
    report = json.loads((folder / 'table6.json').read_text())
    assert [entry['row'] for entry in report['table']] == ['Origin', 'DyRep w/ Dep'] and list(report['failed']) == [
        jobs[2].name]
    dyrep = report['table'][1]
    assert dyrep['grown']['mean'] == 2 and dyrep['macs']['mean'] > report['table'][0]['macs']['mean']

    (jobs[2].folder / 'last_checkpoint').unlink()
    done = run('table6', '--small', '--work-dir', tmp_path, '--resume', '--jobs', '2')
    assert done.returncode == 0, done.stderr
    assert '3 of 3 runs are done' in done.stdout and (folder / 'table6.png').exists()
    assert run('table6', '--small', '--work-dir', tmp_path, '--report-only').returncode == 0
