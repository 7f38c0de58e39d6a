"""Random state as a function of (seed, step, rank), and a look at each fetch of an iteration loop."""
import random
from typing import Any, Callable, Iterator, List

import numpy as np
import torch
from mmengine.runner import Runner


def set_random_state(seed: int, step: int, rank: int = 0) -> None:
    """Seed python's ``random``, numpy and torch (CPU and every GPU), each from a stream of its own.

    Args:
        seed (int): Seed of the run, 0 to 2**32 - 1.
        step (int): Epochs or iterations done.
        rank (int): Rank of the process: no two draw the same numbers. Defaults to 0.
    """
    for_random, for_numpy, for_torch = np.random.SeedSequence((seed, step, rank)).generate_state(3, np.uint64)
    random.seed(int(for_random))
    np.random.seed(int(for_numpy) % 2**32)
    torch.manual_seed(int(for_torch) >> 1)


class FetchWatcher:
    """The data iterator of an iteration loop, with calls before and after each fetch.

    mmengine has no hook between the batches that a resumed run skips and the first that it trains on, nor before a
    fetch. Skipped batches come through here, too, under the indices that they had in the first pass.

    Args:
        iterator (Iterator): The loop's iterator.

    Attributes:
        before (list[Callable]): Called with the index of the batch, from 0, before it is fetched.
        after (list[Callable]): Called with the index and the batch.
    """

    def __init__(self, iterator: Iterator) -> None:
        self.iterator = iterator
        self.index = 0
        self.before: List[Callable[[int], Any]] = []
        self.after: List[Callable[[int, Any], Any]] = []

    def __iter__(self) -> 'FetchWatcher':
        return self

    def __next__(self) -> Any:
        for call in self.before:
            call(self.index)
        batch = next(self.iterator)
        for look in self.after:
            look(self.index, batch)
        self.index += 1
        return batch

    def skip_iter(self, number: int) -> None:
        """Fetch the batches that a resumed run is to leave out, as mmengine up to 0.10.7 does it.

        Later ones ask the iterator for it, which then moves its sampler on without loading; here the skipped batches
        are needed, to be kept and to draw what they drew in the first pass.

        Args:
            number (int): How many.
        """
        for _ in range(number):
            next(self)

    def __getattr__(self, name: str) -> Any:
        # a loop may ask its iterator for more than batches
        if name == 'iterator':
            raise AttributeError(name)
        return getattr(self.iterator, name)


def watch_fetches(runner: Runner) -> FetchWatcher:
    """The watcher of a runner's iteration loop, put in at the first call; call it in ``before_train``.

    Raises:
        TypeError: If the loop is none that fetches through ``dataloader_iterator``.
    """
    loop = runner.train_loop
    if not counts_iterations(runner):
        raise TypeError(f'{type(loop).__name__} does not fetch through dataloader_iterator, as IterBasedTrainLoop does')
    if not isinstance(loop.dataloader_iterator, FetchWatcher):
        loop.dataloader_iterator = FetchWatcher(loop.dataloader_iterator)
        if getattr(loop, 'fast_forward_on_resume', False):
            # the loop goes on without skipping, so its first fetch is not the first of the run
            loop.dataloader_iterator.index = loop.iter
    return loop.dataloader_iterator


def counts_iterations(runner: Runner) -> bool:
    """Whether a runner trains by iterations, IterBasedTrainLoop's way, rather than by epochs."""
    return hasattr(runner.train_loop, 'dataloader_iterator')
