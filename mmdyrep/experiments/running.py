"""Runs of an experiment as processes: several at a time, each goes on where it was killed."""
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence

from mmdyrep.fileio import read_json, write_json

from .index import Run

RESULT, SPENT, LOG = 'result.json', 'spent.json', 'output.log'


@dataclass(frozen=True)
class Job:
    """A run with its seed, and its folder."""

    run: Run
    seed: int
    folder: Path
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For a person."""
        return f'{self.run.row}, {self.run.column}, seed {self.seed}'

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return (self.folder / RESULT).exists()


def jobs_of(runs: Sequence[Run], seeds: int, folder: Path, options: Mapping[str, Any]) -> List[Job]:
    """A job for each run and seed, seeds from 1, all runs of a seed before the next.

    The folder is named after the config and what is changed in it, so that experiments share what they have in common.
    """
    return [Job(run, seed, folder / _name(run, options) / f'seed_{seed}',
                {**run.options, 'randomness.seed': seed, **options}) for seed in range(1, seeds + 1) for run in runs]


def _name(run: Run, options: Mapping[str, Any]) -> str:
    changed = json.dumps({**run.options, **options}, sort_keys=True, default=str)
    return f'{Path(run.config).parent.name}-{Path(run.config).stem}-{hashlib.sha1(changed.encode()).hexdigest()[:8]}'


def slug(text: str) -> str:
    """Name of a folder: lower case, digits, letters, dots and dashes."""
    return re.sub(r'[^a-z0-9.]+', '-', text.lower().replace('w/o', 'without').replace('w/', 'with')).strip('-')


def command(job: Job, root: Path) -> List[str]:
    """Arguments of tools/train.py."""
    settings = [f'{key}={_written(value)}' for key, value in job.options.items()]
    config = root / 'configs' / job.run.config
    return [str(config), '--work-dir', str(job.folder), '--resume', '--cfg-options', *settings]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else str(value).replace(' ', '')


class Runner:
    """Trains jobs, some at a time; ending it ends its processes.

    Args:
        root (Path): The repository.
        number (int): Jobs at a time.
        finish (callable): Takes a job that has trained, returns its result; called in a thread.
        told (callable): Takes a job and an error text, empty if there is none.
    """

    def __init__(self, root: Path, number: int, finish: Callable[[Job], Dict[str, Any]],
                 told: Callable[[Job, str], None]) -> None:
        self.root, self.number, self.finish, self.told = root, number, finish, told
        self._processes: Dict[Path, subprocess.Popen] = {}
        self._stopped = threading.Event()

    def run(self, jobs: Sequence[Job], wait: Callable[[], None] = lambda: None) -> Dict[str, str]:
        """Train what is not done.

        Args:
            jobs (Sequence[Job]): Those that are done are left alone.
            wait (callable): Called twice a second meanwhile.

        Returns:
            dict: What went wrong, by the name of the job; a failure does not stop the others.
        """
        errors: Dict[str, str] = {}

        def work(job: Job) -> None:
            error = '' if job.done or self._stopped.is_set() else self._train(job)
            if self._stopped.is_set():
                return
            if error:
                errors[job.name] = error
            self.told(job, error)

        with ThreadPoolExecutor(self.number) as pool:
            futures = [pool.submit(work, job) for job in jobs]
            try:
                while not all(future.done() for future in futures):
                    wait()
                    time.sleep(0.5)
            finally:
                self.stop()
        for future in futures:
            future.result()
        return errors

    def stop(self) -> None:
        """End all processes; their last checkpoints stay."""
        self._stopped.set()
        for process in list(self._processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _train(self, job: Job) -> str:
        job.folder.mkdir(parents=True, exist_ok=True)
        # torch takes MKL's number, where there is one, before OpenMP's
        threads = os.environ.get('OMP_NUM_THREADS') or str(max(1, (os.cpu_count() or 1) // self.number))
        begin = time.monotonic()
        env = {**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads, 'PYTHONPATH': os.pathsep.join(
            filter(None, [str(self.root), os.environ.get('PYTHONPATH')]))}
        arguments = [sys.executable, str(self.root / 'tools' / 'train.py'), *command(job, self.root)]
        with open(job.folder / LOG, 'ab') as log:
            process = subprocess.Popen(arguments, cwd=self.root, stdout=log, stderr=subprocess.STDOUT, env=env)
            self._processes[job.folder] = process
            status = process.wait()
        _spend(job, time.monotonic() - begin)
        if self._stopped.is_set():
            return ''
        if status:
            return f'ended with status {status}: {last_line(job.folder / LOG)} (all of it: {job.folder / LOG})'
        try:
            result = self.finish(job)
        except Exception as error:  # one run's files must not stop the others
            return f'{type(error).__name__}: {error}'
        write_json(job.folder / RESULT, {**result, 'seconds': spent(job)})
        return ''


def spent(job: Job) -> float:
    """Seconds that all attempts at a job took."""
    path = job.folder / SPENT
    return read_json(path)['seconds'] if path.exists() else 0.0


def _spend(job: Job, seconds: float) -> None:
    write_json(job.folder / SPENT, {'seconds': round(spent(job) + seconds, 1)})


def last_line(log: Path) -> str:
    """Last line of a log that is not empty."""
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1] if lines else 'no output'


def epochs_done(job: Job) -> int:
    """Epochs that a job has been validated after."""
    found = 0
    for path in job.folder.glob('*/vis_data/scalars.json'):
        for line in path.read_text(errors='replace').splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # being written
            if 'iter' not in row and any(key.startswith('accuracy/') for key in row):
                found = max(found, row['step'])
    return found
