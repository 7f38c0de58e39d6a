"""Batches put through a model as its own training step does, without training."""
import copy
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Tuple

import torch
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import Runner
from torch import Tensor, nn

from mmdyrep.dynamics.passes import Run, Stop, passes
from mmdyrep.models.finding import unwrapped
from mmdyrep.reparam.untouched import untouched


def runner_forward(runner: Runner, model: Optional[nn.Module] = None, exact: bool = False,
                   caught: Optional[List[Tensor]] = None) -> Run:
    """What the runner's training does with a batch: mmengine's step, that of the model's class or of the wrapper's.

    Args:
        runner (Runner): As it is at the moment.
        model (nn.Module, optional): A copy of its model to run instead.
        exact (bool): In the precision of the weights, not under autocast and without TF32. Defaults to False.
        caught (list, optional): Gets the losses that the step wants to learn from.

    Returns:
        callable: Takes a batch as the loop has it, and leaves that as it is.
    """
    wrapper, own = runner.model, unwrapped(runner.model)
    model = own if model is None else model
    standing = _Standing(runner.optim_wrapper, exact, caught)
    if wrapper is not own:
        # mmengine's wrapper does not ask for the model's own step
        special = type(wrapper).train_step is not MMDistributedDataParallel.train_step
        step = partial(_through, wrapper, model) if special else partial(_base_step, model)
    else:
        given = vars(own).get('train_step') if model is own else None
        given = getattr(given, '_torchdynamo_orig_callable', given)  # not the compiled one, which is for training
        step = given or partial(getattr(type(model), 'train_step', _base_step), model)

    def run(batch: Any) -> None:
        with _without_tf32() if exact else nullcontext(), _without_backward(standing), untouched(
                MessageHub.get_current_instance()):
            step(copied(batch), optim_wrapper=standing)

    return run


def runner_loss(runner: Runner) -> Callable[[Any], Tensor]:
    """The loss of the runner's training on a batch, with its graph, in the precision of the weights."""
    losses: List[Tensor] = []
    run = runner_forward(runner, exact=True, caught=losses)

    def loss(batch: Any) -> Tensor:
        losses.clear()
        run(batch)
        if not losses:
            raise RuntimeError('the training step gives its loss neither to optim_wrapper.update_params nor to '
                               'optim_wrapper.backward, so a metric that looks at the loss has none; take another one')
        return losses[0]

    return loss


def _base_step(model: Any, data: Any, optim_wrapper: Any) -> None:
    with optim_wrapper.optim_context(model):
        losses = model._run_forward(model.data_preprocessor(data, True), mode='loss')
    optim_wrapper.update_params(model.parse_losses(losses)[0])


def _through(wrapper: Any, model: nn.Module, data: Any, optim_wrapper: Any) -> None:
    """The step of a parallel wrapper of the user's, on the model alone: nothing is communicated."""
    try:
        vars(wrapper)['forward'] = model.__call__
        wrapper.train_step(data, optim_wrapper=optim_wrapper)
    finally:
        vars(wrapper).pop('forward', None)


@contextmanager
def _without_backward(standing: '_Standing') -> Iterator[None]:
    """A step that calls ``backward`` itself gets no gradients: nothing is there to be learnt from."""
    saved = Tensor.backward, torch.autograd.backward
    try:
        Tensor.backward = lambda loss, *args, **kwargs: standing.backward(loss)  # type: ignore[method-assign]
        torch.autograd.backward = lambda tensors, *args, **kwargs: standing.backward(tensors)
        yield
    finally:
        Tensor.backward, torch.autograd.backward = saved  # type: ignore[method-assign]


@contextmanager
def _without_tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


class _Standing:
    """Stands in for an optimizer wrapper, or for its optimizer, and trains nothing; what is read is the real one's."""

    _IDLE = ('step', 'zero_grad', 'first_step', 'second_step', 'clip_grad', '_clip_grad')

    def __init__(self, real: Any, exact: bool = False, caught: Optional[List[Tensor]] = None) -> None:
        vars(self).update(_real=real, _exact=exact, _caught=[] if caught is None else caught)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._real)

    def __getattr__(self, name: str) -> Any:
        if name in ('update_params', 'backward'):
            return lambda loss, *args, **kwargs: self._caught.append(loss)
        if name in self._IDLE:
            return lambda *args, **kwargs: None
        if name == 'scale_loss':
            return lambda loss: loss
        value = getattr(self._real, name)
        return _Standing(value) if name == 'optimizer' else value

    def optim_context(self, model: nn.Module) -> ContextManager:
        """The real one's (mixed precision), unless exact."""
        return nullcontext() if self._exact else self._real.optim_context(model)


def copied(batch: Any) -> Any:
    """Copy of a batch, so that who takes things out of it or changes them in place does not change the batch."""
    try:
        return copy.deepcopy(batch)
    except Exception:  # types of the user's own may refuse in any way
        return _shell(batch)


def _shell(value: Any) -> Any:
    """Copy of the containers alone."""
    if isinstance(value, dict):
        return {key: _shell(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_shell(item) for item in value)
    return value


def first_call(model: nn.Module, backbone: nn.Module, run: Run, batch: Any) -> Optional[Tuple[tuple, Dict[str, Any]]]:
    """Positional and keyword arguments of a backbone's first call on a batch; None if it is not called.

    The backbone itself does not run, and the model is left as it was.
    """
    calls = []

    def look(module: nn.Module, args: tuple, kwargs: Dict[str, Any]) -> None:
        calls.append((args, kwargs))
        raise Stop

    with passes([backbone.register_forward_pre_hook(look, with_kwargs=True)], model) as through:
        through(run, batch)
    return calls[0] if calls else None
