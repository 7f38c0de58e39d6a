"""The first batch of a training: what the backbone is called with, and how often."""
from typing import Any, Dict, Optional, Tuple

from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmdyrep.models import DyRepBackbone
from mmdyrep.models.finding import unwrapped
from mmdyrep.models.probing import NotProbed
from mmdyrep.reparam.random_state import random_state_kept

from .forwards import copied, first_call, runner_forward
from .loops import loaders_of

Call = Tuple[tuple, Dict[str, Any]]


def look_ahead(runner: Runner, backbone: nn.Module, batch: Any) -> Optional[Call]:
    """Positional and keyword arguments that a batch's training step calls the backbone with, before it is trained on.

    The model is left as it was.

    Returns:
        tuple, optional: None if the step does not call the backbone as a module.

    Raises:
        RuntimeError: If the batch can't be put through the training step once more, as calibration will do.
    """
    if read_once(batch):
        raise RuntimeError(
            f'DyRepHook: the batches of {type(runner.train_loop).__name__} are, or hold, something that can be read '
            f'once ({type(read_once(batch)[0]).__name__}), so none can be kept to calibrate on; let '
            'the loop hand on a list')
    try:
        return first_call(unwrapped(runner.model), backbone, runner_forward(runner), batch)
    except Exception as error:  # a step of the user's may fail in any way
        raise RuntimeError(
            'DyRepHook: the first batch, as before_train_iter hands it on, could not be put through the train_step of '
            f'{type(runner.model).__name__}, as calibration does with the last batches of an interval: '
            f'{type(error).__name__}: {error}. Let the loop call before_train_iter with what it gives to train_step'
        ) from error


def survey_by_first_batch(runner: Runner, backbone: DyRepBackbone) -> None:
    """Survey a backbone whose forward takes something else than one image with the first images of the training.

    They come from a loader of their own, in this process: the training's is not touched, nor is the random state.

    Raises:
        NotProbed: If no image has been taken, since the loop draws from several loaders.
    """
    try:
        backbone.skipped()
    except NotProbed:
        loaders = loaders_of(runner)
        if len(loaders) != 1 or not isinstance(loaders[0], DataLoader):
            raise
        loader = loaders[0]
        with random_state_kept():
            batch = next(iter(DataLoader(loader.dataset, batch_size=min(loader.batch_size or 2, 2),
                                         collate_fn=loader.collate_fn)))
            call = look_ahead(runner, backbone, batch)
        if call is None:
            raise
        backbone.probe_with(*call[0], **call[1])


def image_shape(call: Optional[Call]) -> Optional[Tuple[int, ...]]:
    """(C, H, W) of the one batch of images that a backbone is called with; None if that is not what it takes."""
    tensors = [value for value in (*call[0], *call[1].values()) if isinstance(value, Tensor)] if call else []
    return tuple(tensors[0].shape[1:]) if tensors and tensors[0].dim() == 4 else None


def read_once(batch: Any) -> list:
    """Iterators in a batch that have no copy, as generators."""
    parts = [batch]
    for part in parts:
        if isinstance(part, (dict, list, tuple)):
            parts += part.values() if isinstance(part, dict) else part
    return [part for part in parts if hasattr(part, '__next__') and copied(part) is part]


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
