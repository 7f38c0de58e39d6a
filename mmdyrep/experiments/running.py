"""Runs of an experiment as processes: several at a time, each goes on where it was killed."""
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from mmdyrep.fileio import write_json

from .jobs import RESULT, Job, commands, in_order
from .reopening import reopen
from .spending import Clock, spent

LOG = 'output.log'


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
        jobs = in_order(jobs)
        ended = {job.folder: threading.Event() for job in jobs}

        def work(job: Job) -> None:
            # those that are waited for have been begun: they stand before
            if job.before is not None:
                ended[job.before.folder].wait()
            try:
                error = '' if job.done or self._stopped.is_set() else self._train(job)
            finally:
                # else those that start from it would wait for ever
                ended[job.folder].set()
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
        if job.before is not None and not job.before.done:
            return f'what it starts from has failed: {job.before.name}'
        job.folder.mkdir(parents=True, exist_ok=True)
        # torch takes MKL's number, where there is one, before OpenMP's
        threads = os.environ.get('OMP_NUM_THREADS') or str(max(1, (os.cpu_count() or 1) // self.number))
        env = {**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads, 'PYTHONPATH': os.pathsep.join(
            filter(None, [str(self.root), os.environ.get('PYTHONPATH')]))}
        reopen(job, self.root)
        clock = Clock(job.folder)
        status = 0
        for script, arguments in commands(job, self.root):
            line = [sys.executable, str(self.root / 'tools' / script), *arguments]
            status = status or self._call(job, line, env, clock)
        clock.stop()
        if self._stopped.is_set():
            return ''
        if status:
            return f'ended with status {status}: {last_line(job.folder / LOG)} (all of it: {job.folder / LOG})'
        try:
            result = self.finish(job)
        except Exception as error:  # one run's files must not stop the others
            return f'{type(error).__name__}: {error}'
        write_json(job.folder / RESULT, {**result, **spent(job.folder)})
        return ''

    def _call(self, job: Job, arguments: List[str], env: Dict[str, str], clock: Clock) -> int:
        if self._stopped.is_set():
            return 0
        with open(job.folder / LOG, 'ab') as log:
            process = subprocess.Popen(arguments, cwd=self.root, stdout=log, stderr=subprocess.STDOUT, env=env)
            self._processes[job.folder] = process
            return clock.wait(process)


def last_line(log: Path) -> str:
    """Last line of a log that is not empty."""
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1] if lines else 'no output'
