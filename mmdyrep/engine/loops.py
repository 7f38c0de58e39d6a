"""What is known of a runner's training loop, its own or one of the user's."""
from typing import Any, List, Optional

from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset


def loaders_of(runner: Runner) -> List[Any]:
    """The data loaders of the training: one, or those in the lists and dicts that a loop of the user's takes."""
    found, pending = [], [runner.train_dataloader]
    while pending:
        value = pending.pop(0)
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            pending = [*value, *pending]
        else:
            found.append(value)
    return found


def epoch_length(runner: Runner) -> Optional[int]:
    """Batches of an epoch; None where they are not those of one loader, or where that can't be relied on."""
    loop, loader = runner.train_loop, runner.train_dataloader
    # a loop of the user's may leave an epoch early, or draw from several loaders
    if not isinstance(loop, EpochBasedTrainLoop) or type(loop).run_epoch is not EpochBasedTrainLoop.run_epoch:
        return None
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    return len(loader)


def training_length(runner: Runner, by_epoch: bool) -> Optional[int]:
    """Epochs (or iterations) of the whole training; None where the loop does not tell."""
    length = getattr(runner.train_loop, 'max_epochs' if by_epoch else 'max_iters', None)
    return length if isinstance(length, int) else None
