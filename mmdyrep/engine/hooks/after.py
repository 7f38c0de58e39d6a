"""The place of an update: after EMA and schedulers, before checkpoints."""
from typing import Any, Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..distributed import mean_statistics, saves_after_iteration
from ..following import models_of


class After(Hook):
    """Calls its owner's ``after`` at the end of an epoch or iteration; norms' statistics are then those of all ranks.

    Args:
        owner (Hook): Has ``by_epoch`` and ``after(runner, number)``, which counts from 1.
        also (int, optional): An iteration whose statistics are shared although no checkpoint follows.
    """

    priority = 80

    def __init__(self, owner: Any, also: Optional[int] = None) -> None:
        self.owner, self.also = owner, also

    def after_train_epoch(self, runner: Runner) -> None:
        if self.owner.by_epoch:
            mean_statistics(models_of(runner))
            self.owner.after(runner, runner.epoch + 1)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not self.owner.by_epoch:
            if saves_after_iteration(runner) or runner.iter + 1 == self.also:
                mean_statistics(models_of(runner))
            self.owner.after(runner, runner.iter + 1)
