"""Gradients at the moment that the optimizer sees them."""
from functools import wraps
from typing import Any, Callable

import torch._dynamo
from torch.optim import Optimizer


def before_each_step(optimizer: Optimizer, look: Callable[[Any], None]) -> None:
    """Call ``look`` before each step of an optimizer, once per accumulated step, with the scale of the gradients.

    Under automatic mixed precision the loss scaler divides the gradients by its scale before the step and leaves
    steps out that overflow. Fused optimizers do both by themselves: they are called in any case, with attributes
    ``grad_scale`` (None once divided) and ``found_inf``.

    ``step`` of this object is replaced, as PyTorch's schedulers do: hooks that are registered for a step are lost once
    something has been compiled (PyTorch 2.1), and called twice where a subclass calls its base's step. Where a
    training step is compiled, the optimizer's part of it is not.

    Args:
        optimizer (Optimizer): Of PyTorch; its copies don't call ``look``.
        look (callable): Takes what the gradients are still multiplied by, a number or a tensor; instead of the one
            that was given before.
    """
    step = getattr(optimizer.step, 'watched_by_mmdyrep', optimizer.step)

    @wraps(step)
    def watched(*args: Any, **kwargs: Any) -> Any:
        overflow = getattr(optimizer, 'found_inf', None)
        if overflow is None or not bool(overflow):
            scale = getattr(optimizer, 'grad_scale', None)
            look(1.0 if scale is None else scale)
        return step(*args, **kwargs)

    uncompiled: Any = torch._dynamo.disable(watched)
    uncompiled.watched_by_mmdyrep = step
    optimizer.step = uncompiled  # type: ignore[method-assign]
