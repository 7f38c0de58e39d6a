"""GraSP (Eq. 14): how the norm of the gradient would change with an op's weight."""
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.reparam.untouched import untouched

from .saliency import Op, Saliency


class Grasp(Saliency):
    """Sum of -(H g) * weight, H the Hessian and g the gradient of the loss over all trainable parameters (Eq. 14).

    In front of a batch norm in train mode, H and g of one batch, this is the squared norm of the op's own gradient:
    the gradient of a scale-invariant convolution is homogeneous of degree -1 in its weight. With H and g of two
    batches it is the scalar product of the op's gradients in them, which noise averages out of.

    Args:
        two_batches (bool): H of each batch with g of the one before it, of the first with that of the last. Defaults
            to False: H and g of the same batch.
    """

    def __init__(self, two_batches: bool = False) -> None:
        super().__init__()
        self.two_batches = bool(two_batches)
        self.batches = 2 if two_batches else 1

    def score(self, op: Op) -> Optional[Tensor]:
        """None: the gradients of the steps are no part of it."""
        return None

    def measure(self, model: nn.Module, loss: Callable[[Any], Tensor], batches: Sequence[Any],
                ops: Sequence[Op]) -> None:
        """Add the score of each op on each batch; nothing if there are too few of them.

        Raises:
            RuntimeError: If a part of the model has no second derivative.
        """
        ops = [op for op in ops if op.conv.weight.requires_grad]
        if len(batches) < self.batches or not ops:
            return
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def gradient(batch: Any, twice: bool) -> Tuple[Optional[Tensor], ...]:
            return torch.autograd.grad(loss(batch), parameters, create_graph=twice, allow_unused=True)

        with twice_differentiable(model), untouched(model), torch.enable_grad():
            direction: Sequence[Optional[Tensor]] = ()
            if self.two_batches:
                direction = _detached(gradient(batches[-1], False))
            for batch in batches:
                slopes = gradient(batch, True)
                _require_second(slopes)
                direction = direction if self.two_batches else _detached(slopes)
                products = _hessian_times(slopes, direction, [op.conv.weight for op in ops])
                for op, product in zip(ops, products):
                    if product is not None:
                        self.add(op.name, -(product.double() * op.conv.weight.detach().double()).sum())
                direction = _detached(slopes)


def _detached(tensors: Sequence[Optional[Tensor]]) -> List[Optional[Tensor]]:
    return [None if tensor is None else tensor.detach() for tensor in tensors]


def _require_second(slopes: Sequence[Optional[Tensor]]) -> None:
    """Refuse gradients of functions that can be differentiated once: their share of H would be left out in silence."""
    todo, seen = [slope.grad_fn for slope in slopes if slope is not None], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == 'Error':
            raise RuntimeError('a function of it is marked with once_differentiable')
        seen.add(node)
        todo += [function for function, _ in node.next_functions]


def _hessian_times(slopes: Sequence[Optional[Tensor]], direction: Sequence[Optional[Tensor]],
                   weights: Sequence[Tensor]) -> Sequence[Optional[Tensor]]:
    """Rows of H that belong to ``weights``, times ``direction``: derivatives of ``slopes * direction``."""
    terms = [(slope * along).sum() for slope, along in zip(slopes, direction)
             if slope is not None and along is not None and slope.requires_grad]
    if not terms:
        return [None] * len(weights)
    return torch.autograd.grad(torch.stack([term.double() for term in terms]).sum(), weights, allow_unused=True)


class _OwnStatistics(_BatchNorm):
    """SyncBatchNorm with the statistics of its own rank, which can be differentiated twice."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Let a model be differentiated twice: without checkpointing, batch norms on their own rank's statistics.

    Raises:
        RuntimeError: From within, if that is not enough, with what to do.
    """
    synced = [module for module in model.modules() if type(module) is nn.SyncBatchNorm]
    checkpointed = [module for module in model.modules() if getattr(module, 'with_cp', False) is True]
    try:
        for norm in synced:
            norm.__class__ = _OwnStatistics  # type: ignore[assignment]
        for module in checkpointed:
            module.with_cp = False  # type: ignore[assignment]
        yield
    except RuntimeError as error:
        if any(sign in str(error) for sign in _NO_SECOND):
            raise RuntimeError('the metric grasp needs the second derivative of the loss, which a part of the '
                               f'{type(model).__name__} does not have: {error}. Take another one, as snip') from error
        raise
    finally:
        for norm in synced:
            norm.__class__ = nn.SyncBatchNorm
        for module in checkpointed:
            module.with_cp = True  # type: ignore[assignment]


# of functions that can be differentiated once, checkpointed parts, and compiled ones
_NO_SECOND = ('once_differentiable', 'is not implemented', 'Checkpointing is not compatible', 'double backward')
