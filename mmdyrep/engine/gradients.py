"""Gradients at the moment that the optimizer sees them."""
from typing import Any, Callable

from torch.optim import Optimizer


def before_each_step(optimizer: Optimizer, look: Callable[[Any], None]) -> None:
    """Call ``look`` before each step of an optimizer, once per accumulated step, with the scale of the gradients.

    Under automatic mixed precision the loss scaler divides the gradients by its scale before the step and leaves
    steps out that overflow. Fused optimizers do both by themselves: they are called in any case, with attributes
    ``grad_scale`` (None once divided) and ``found_inf``.

    Args:
        optimizer (Optimizer): Of PyTorch; its copies don't call ``look``.
        look (callable): Takes what the gradients are still multiplied by, a number or a tensor.
    """

    def hook(*_: Any) -> None:
        overflow = getattr(optimizer, 'found_inf', None)
        if overflow is not None and bool(overflow):
            return
        scale = getattr(optimizer, 'grad_scale', None)
        look(1.0 if scale is None else scale)

    optimizer.register_step_pre_hook(hook)
