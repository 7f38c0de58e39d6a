"""A process that dies where a test wants it to."""
import os
import signal
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class KillHook(Hook):
    """SIGKILL after the training step of an iteration, counted from 1."""

    priority = 'HIGHEST'

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter + 1 == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
