"""What a run has taken, over all attempts at it."""
import os
import subprocess
import time
from pathlib import Path
from typing import Dict

from mmdyrep.fileio import read_json, write_json

SPENT = 'spent.json'


class Clock:
    """Takes the time of an attempt and adds it to what earlier ones have taken.

    An attempt that does not come to :meth:`stop`, since the machine or this process was killed, stays on record as
    begun: the processor's time of the run is then not known.

    Args:
        folder (Path): Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.begin, self.cpu = folder / SPENT, time.monotonic(), 0.0
        self.before = _read(self.path)
        self.before['begun'] += 1
        write_json(self.path, self.before)

    def wait(self, process: subprocess.Popen) -> int:
        """Wait for a process and those that it has waited for, its data workers; returns its status."""
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except ChildProcessError:  # somebody asked for its status in this moment, so it has been told to end
            return process.wait()
        process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu += usage.ru_utime + usage.ru_stime
        return process.returncode

    def stop(self) -> None:
        """Write what has been taken."""
        write_json(self.path, {
            'seconds': round(self.before['seconds'] + time.monotonic() - self.begin, 1),
            'cpu_seconds': round(self.before['cpu_seconds'] + self.cpu, 1),
            'begun': self.before['begun'], 'ended': self.before['ended'] + 1})


def _read(path: Path) -> Dict[str, float]:
    # a file without counts is of an attempt that told its seconds alone
    return {'seconds': 0.0, 'cpu_seconds': 0.0, 'begun': int(path.exists()), 'ended': 0,
            **(read_json(path) if path.exists() else {})}


def spent(folder: Path) -> Dict[str, float]:
    """Seconds of all attempts, ``cpu_seconds`` of the processor where every attempt has told its own."""
    found = _read(folder / SPENT)
    whole = found['begun'] == found['ended'] > 0
    return {'seconds': found['seconds'], **({'cpu_seconds': found['cpu_seconds']} if whole else {})}
