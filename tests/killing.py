"""A process that dies where a test wants it to."""
import os
import resource
import signal
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
