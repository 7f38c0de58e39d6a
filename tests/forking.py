"""Trainings forked from a process that has done all imports: real processes, started in a fraction of a second.

`python -m tests.forking` is that process: it reads a request as a line of JSON and answers with one.
"""
import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Dict, List, Optional

from mmengine.config import Config

from tests.runs import ROOT

TRAIN = str(ROOT / 'tools' / 'train.py')


class Training:
    """A process that trains; its output goes into a file.

    Args:
        forker (Forker): Its parent.
        pid (int): Its number.
        log (Path): Of its output.
    """

    def __init__(self, forker: 'Forker', pid: int, log: Path) -> None:
        self.forker, self.pid, self.log = forker, pid, log
        self.code: Optional[int] = None

    def poll(self) -> Optional[int]:
        """Exit code, -N after signal N; None while it runs."""
        if self.code is None:
            self.code = self.forker.ask(poll=self.pid)
        return self.code

    def wait(self) -> int:
        """Exit code, once it has ended."""
        if self.code is None:
            self.code = self.forker.ask(wait=self.pid)
        return self.code

    def kill(self, signal: int) -> int:
        """Send a signal; the exit code tells whether it came in time."""
        if self.poll() is None:
            os.kill(self.pid, signal)
        return self.wait()

    @property
    def output(self) -> str:
        """Standard output and error."""
        return self.log.read_text()


class Forker:
    """Starts trainings; a context manager."""

    def __enter__(self) -> 'Forker':
        env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
        self.process = subprocess.Popen([sys.executable, '-m', 'tests.forking'], cwd=ROOT, text=True, env=env,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.started = 0
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **request: Any) -> Any:
        """Send a request and return the answer."""
        self.process.stdin.write(json.dumps(request) + '\n')
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, cfg: Config, work_dir: Path, *arguments: str) -> Training:
        """Start tools/train.py."""
        path = work_dir.parent / f'{work_dir.name}.py'
        cfg.dump(path)
        self.started += 1
        log = work_dir.parent / f'{work_dir.name}-{self.started}.log'
        log.touch()
        return Training(self, self.ask(train=[str(path), '--work-dir', str(work_dir), *arguments], log=str(log)), log)

    def train(self, cfg: Config, work_dir: Path, *arguments: str) -> Training:
        """Run tools/train.py to its end."""
        training = self.start(cfg, work_dir, *arguments)
        training.wait()
        return training


def _train(arguments: List[str], log: str) -> None:
    """Be a process that trains."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
        os.dup2(file, number)
    sys.argv = [TRAIN, *arguments]
    code = 0
    try:
        runpy.run_path(TRAIN, run_name='__main__')
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _answer(request: Dict[str, Any]) -> Any:
    if 'train' in request:
        pid = os.fork()
        if not pid:
            _train(request['train'], request['log'])
        return pid
    pid = request.get('wait', request.get('poll'))
    ended, status = os.waitpid(pid, 0 if 'wait' in request else os.WNOHANG)
    if not ended:
        return None
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main() -> None:
    # what libraries print must not get between the answers
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    from mmpretrain.utils import register_all_modules

    import mmdyrep  # noqa: F401
    register_all_modules(init_default_scope=False)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + '\n')
        answers.flush()


if __name__ == '__main__':
    main()
