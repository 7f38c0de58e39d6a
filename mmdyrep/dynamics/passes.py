"""Forward passes that end as soon as nothing more is wanted of them, and leave nothing behind."""
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mmdyrep.reparam.untouched import untouched

Run = Callable[[Any], Any]


class Stop(Exception):
    """Leaves a forward pass as soon as nothing more is wanted of it."""


@contextmanager
def passes(hooks: Sequence[RemovableHandle], *models: nn.Module) -> Iterator[Callable[[Run, Any], None]]:
    """Put batches through a model without gradients; a hook that has seen enough raises `Stop`.

    In the end the hooks are removed and the models are what they were, also when a pass fails (`reparam.untouched`).

    Args:
        hooks (Sequence[RemovableHandle]): Registered for these passes.
        models (nn.Module): Whatever the passes may change.

    Yields:
        callable: Takes what runs, and a batch.
    """
    def through(run: Run, batch: Any) -> None:
        try:
            run(batch)
        except Stop:
            pass

    try:
        with torch.no_grad(), untouched(*models):
            yield through
    finally:
        for hook in hooks:
            hook.remove()
