"""What runs have taken, and runs that were killed between their last epoch and its validation."""
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

from mmdyrep.experiments import Run
from mmdyrep.experiments.jobs import Job, jobs_of
from mmdyrep.experiments.reopening import reopen
from mmdyrep.experiments.running import Runner
from mmdyrep.experiments.spending import SPENT, Clock, spent
from tests.runs import ROOT

BUSY = '''
import time
end = time.process_time() + 1
while time.process_time() < end:
    pass
time.sleep(0.3)
'''


def attempt(folder: Path, code: str = BUSY) -> int:
    clock = Clock(folder)
    status = clock.wait(subprocess.Popen([sys.executable, '-c', code]))
    clock.stop()
    return status


def test_time_of_the_processor_is_that_of_the_processes_and_attempts_add_up(tmp_path: Path) -> None:
    assert attempt(tmp_path) == 0
    first = spent(tmp_path)
    assert 1 <= first['cpu_seconds'] < first['seconds'] - 0.1
    # what this process does meanwhile does not count, nor do processes of other runs
    subprocess.run([sys.executable, '-c', BUSY], check=True)
    assert attempt(tmp_path, 'import sys, time; time.sleep(0.3); sys.exit(3)') == 3
    second = spent(tmp_path)
    assert first['cpu_seconds'] <= second['cpu_seconds'] < first['cpu_seconds'] + 0.9
    assert second['seconds'] > first['seconds'] + 0.1


def test_a_status_that_somebody_else_asked_for_is_not_lost(tmp_path: Path) -> None:
    clock, process = Clock(tmp_path), subprocess.Popen([sys.executable, '-c', 'import sys; sys.exit(5)'])
    process.wait()
    assert clock.wait(process) == 5


@pytest.mark.parametrize('before', [None, {'seconds': 100.0}])
def test_time_of_the_processor_is_unknown_once_an_attempt_was_killed_without_telling(tmp_path: Path,
                                                                                     before: Any) -> None:
    if before is None:
        Clock(tmp_path)
    else:  # of an earlier version
        (tmp_path / SPENT).write_text(json.dumps(before))
    attempt(tmp_path, '')
    found = spent(tmp_path)
    assert 'cpu_seconds' not in found and found['seconds'] >= (before or {'seconds': 0})['seconds']


def test_a_run_that_is_done_tells_both(tmp_path: Path) -> None:
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(BUSY)
    job, = jobs_of([Run('a', 'x', 'a.py')], 1, tmp_path / 'runs', {})
    assert not Runner(tmp_path, 1, lambda job: {'value': 1.0}, lambda job, error: None).run([job])
    result = json.loads((job.folder / 'result.json').read_text())
    assert result['value'] == 1 and 1 <= result['cpu_seconds'] < result['seconds']


def run_of(folder: Path, saved: Dict[int, str], validated: int) -> Job:
    """A run of 15 epochs: files of its checkpoints, the last epoch that was validated."""
    job, = jobs_of([Run('plain', 'x', 'small/vgg16-w8_b64_fashion-mnist.py')], 1, folder, {})
    (job.folder / 'a' / 'vis_data').mkdir(parents=True)
    rows = [{'loss': 1.0, 'iter': 188, 'step': 188, 'epoch': 1}] + [
        {'accuracy/top1': 80.0 + epoch, 'step': epoch} for epoch in range(1, validated + 1)]
    (job.folder / 'a' / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    for epoch, content in saved.items():
        (job.folder / f'epoch_{epoch}.pth').write_text(content)
    (job.folder / 'last_checkpoint').write_text(str(job.folder / f'epoch_{max(saved)}.pth'))
    return job


@pytest.mark.parametrize('saved, validated, left', [
    ({9: '', 14: '', 15: ''}, 14, 14),  # killed in the validation: the last epoch is trained again
    ({14: '', 15: ''}, 0, 14),
    ({15: ''}, 0, None),  # nothing to go back to: all of it
    ({14: '', 15: ''}, 15, 15),  # came to its end
    ({13: '', 14: ''}, 13, 14),  # in the middle
])
def test_a_run_that_is_saved_to_its_end_but_not_validated_goes_back_an_epoch(tmp_path: Path, saved: Any,
                                                                            validated: int, left: Any) -> None:
    job = run_of(tmp_path, saved, validated)
    reopen(job, ROOT)
    record = job.folder / 'last_checkpoint'
    assert record.exists() == (left is not None)
    assert not record.exists() or Path(record.read_text()).name == f'epoch_{left}.pth'
    assert (job.folder / 'epoch_15.pth').exists() == (15 in saved and left == 15)


def test_iteration_loops_and_new_runs_are_left_alone(tmp_path: Path) -> None:
    job = run_of(tmp_path, {15: ''}, 0)
    (job.folder / 'last_checkpoint').write_text(str(job.folder / 'iter_200.pth'))
    reopen(job, ROOT)
    assert (job.folder / 'epoch_15.pth').exists() and (job.folder / 'last_checkpoint').exists()
    new, = jobs_of([Run('plain', 'x', 'small/resnet18-w8_b64_fashion-mnist.py')], 1, tmp_path, {})
    reopen(new, ROOT)
