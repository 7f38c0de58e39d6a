"""What each process of a run has at its end."""
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class RankHook(Hook):
    """Save state, structure and first loss of every rank beside the checkpoints.

    Args:
        spoil (bool): Change a weight of the second rank after the first iteration.
    """

    priority = 'LOWEST'

    def __init__(self, spoil: bool = False) -> None:
        self.spoil = spoil
        self.losses = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.losses.append(outputs['loss'].item())
        if self.spoil and runner.rank == 1:
            with torch.no_grad():
                next(runner.model.parameters()).add_(0.1)

    def after_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        torch.save({'state': model.state_dict(), 'structure': model.backbone.structure, 'losses': self.losses,
                    'wrapper': type(runner.model).__name__}, Path(runner.work_dir) / f'rank_{runner.rank}.pth')
