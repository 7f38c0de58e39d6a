"""A process that dies, or finds no room, where a test wants it to."""
import os
import resource
import signal
import sys
from typing import Any, Optional

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class KillHook(Hook):
    """SIGKILL after the training step of an iteration, counted from 1.

    Args:
        at (int): The iteration.
        writing (int, optional): Die at this many bytes into the next file that is larger, not at once.
        rank (int, optional): Only the process of this rank dies.
    """

    priority = 'HIGHEST'

    def __init__(self, at: int, writing: Optional[int] = None, rank: Optional[int] = None) -> None:
        self.at = at
        self.writing = writing
        self.rank = rank

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.rank is not None and runner.rank != self.rank:
            return
        if runner.iter + 1 == self.at and self.writing:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.writing, self.writing))
        elif runner.iter + 1 == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class FullDiskHook(Hook):
    """No room for files of one name: the system itself refuses to write them.

    Args:
        name (str): Part of the name.
        room (int): Bytes that can be written.
        at (int): From this iteration on, counted from 1.
    """

    priority = 'HIGHEST'

    def __init__(self, name: str, room: int, at: int) -> None:
        self.name, self.room, self.at = name, room, at

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter + 1 == self.at:
            sys.addaudithook(self._look)

    def _look(self, event: str, args: Any) -> None:
        if event == 'open':
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.room if self.name in str(args[0]) else most, most))
