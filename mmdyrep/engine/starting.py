"""The first batch of a training: what the backbone is called with, and how often."""
from typing import Any, Dict, Optional, Tuple

from mmengine.runner import Runner
from torch import Tensor, nn

from mmdyrep.models.finding import unwrapped

from .forwards import first_call, runner_forward

Call = Tuple[tuple, Dict[str, Any]]


def look_ahead(runner: Runner, backbone: nn.Module, batch: Any) -> Optional[Call]:
    """Positional and keyword arguments that a batch's training step calls the backbone with, before it is trained on.

    The model is left as it was.

    Returns:
        tuple, optional: None if the step does not call the backbone as a module.

    Raises:
        RuntimeError: If the batch can't be put through the training step once more, as calibration will do.
    """
    try:
        return first_call(unwrapped(runner.model), backbone, runner_forward(runner), batch)
    except Exception as error:  # a step of the user's may fail in any way
        raise RuntimeError(
            'DyRepHook: the first batch, as before_train_iter hands it on, could not be put through the train_step of '
            f'{type(runner.model).__name__}, as calibration does with the last batches of an interval: '
            f'{type(error).__name__}: {error}. Let the loop call before_train_iter with what it gives to train_step'
        ) from error


def image_shape(call: Optional[Call]) -> Optional[Tuple[int, ...]]:
    """(C, H, W) of the one batch of images that a backbone is called with; None if that is not what it takes."""
    tensors = [value for value in (*call[0], *call[1].values()) if isinstance(value, Tensor)] if call else []
    return tuple(tensors[0].shape[1:]) if tensors and tensors[0].dim() == 4 else None


class CallCount:
    """Counts the forward passes of a backbone until it is asked."""

    def __init__(self, backbone: nn.Module) -> None:
        self.number = 0
        self._hook = backbone.register_forward_hook(self._called)

    def _called(self, *_: Any) -> None:
        self.number += 1

    def stop(self) -> int:
        """How often it ran, at least 1."""
        self._hook.remove()
        return max(1, self.number)
