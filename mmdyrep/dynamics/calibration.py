"""Batch norm statistics from batches of an interval (Section 4.1: 20 batches before Eq. 6)."""
from functools import partial
from typing import Any, Callable, Collection, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.reparam import Statistics

from .passes import Stop, passes

# takes the positional and keyword arguments of a call
Look = Callable[[Tuple[Any, ...], Dict[str, Any]], None]


class NotReached(RuntimeError):
    """No batch of any rank has led through a batch norm, as through a layer that stochastic depth always skips."""


class Calibration:
    """Measures what batch norms get to see on training batches; callable as `reparam.Measure`.

    The network runs as in training and only as far as the norms in question; afterwards it is what it was, also when
    the forward fails (`reparam.untouched`). A norm that some batches skip is averaged over those that reach it.
    Where a step can't go on without gradients after a pass through the part, the passes until then count.

    Args:
        model (nn.Module): The whole model, in train mode.
        run (callable): Runs the model's forward on a batch.
        batches (Sequence): Batches already seen.
        part (nn.Module, optional): The backbone: where the norms lie, so that nothing runs behind it.
        calls (int): Forward passes through the part that one batch makes in training. Defaults to 1.
    """

    def __init__(self, model: nn.Module, run: Callable[[Any], Any], batches: Sequence[Any],
                 part: Optional[nn.Module] = None, calls: int = 1) -> None:
        if not batches:
            raise ValueError('calibration needs at least one batch')
        self.model, self.run, self.batches, self.part, self.calls = model, run, batches, part, calls

    def __call__(self, norms: Sequence[_BatchNorm], fixed: bool = False) -> List[Statistics]:
        """Mean over the batches of all ranks of each norm's input mean and unbiased variance.

        Args:
            norms (Sequence[_BatchNorm]): They work in train mode meanwhile, frozen ones, too.
            fixed (bool): They stay in the mode that they are in. Defaults to False.

        Returns:
            list[Statistics]: Of shape (C,) each, float64.

        Raises:
            NotReached: If a norm is not reached by any batch of any rank; on all ranks.
        """
        found = Found(norms)
        self.visit(found.looks, norms, () if fixed else norms)
        return found.means()

    def visit(self, looks: Mapping[nn.Module, Look], wanted: Collection[nn.Module],
              training: Sequence[_BatchNorm] = (), after: Callable[[], bool] = lambda: True) -> None:
        """Put the batches through the model, each as far as all wanted modules have been called.

        Args:
            looks (Mapping[nn.Module, callable]): Take the arguments of a module before each of its calls.
            wanted (Collection[nn.Module]): Some of these modules; others may become unwanted between two batches.
            training (Sequence[_BatchNorm]): Norms that work in train mode meanwhile.
            after (callable, optional): Called after each batch; False ends it.
        """
        calls: Dict[Optional[nn.Module], int] = {}

        def called(module: Optional[nn.Module], of: Collection[nn.Module]) -> None:
            calls[module] = calls.get(module, 0) + 1
            if all(calls.get(other, 0) >= self.calls for other in of):
                raise Stop

        def see(module: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
            looks[module](args, kwargs)
            called(module, wanted)

        # in front of an op, first of all: other hooks may change its arguments, and will again when it is run on them
        hooks = [module.register_forward_pre_hook(see, prepend=not isinstance(module, _BatchNorm), with_kwargs=True)
                 for module in looks]
        if self.part is not None:
            hooks.append(self.part.register_forward_hook(lambda part, inputs, output: called(part, [part])))
        with passes(hooks, self.model) as through:
            for norm in training:
                norm.training = True
            for batch in self.batches:
                calls.clear()
                try:
                    through(self.run, batch)
                except Exception:
                    # a step that needs gradients between two passes (adversarial training): the first counts
                    if not calls.get(self.part):
                        raise
                if not after():
                    break


class Found:
    """Statistics of the inputs of norms, as they come.

    Args:
        norms (Sequence[_BatchNorm]): In the order that they are asked for.
    """

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
        self._found: Dict[_BatchNorm, List[Tensor]] = {norm: [] for norm in norms}
        self.looks: Dict[nn.Module, Look] = {norm: partial(self._look, norm) for norm in norms}

    def _look(self, norm: _BatchNorm, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        self._found[norm].append(torch.cat(batch_statistics(args[0])))

    def means(self) -> List[Statistics]:
        """Means over all passes of all ranks, in one communication: ranks may have found different numbers.

        Raises:
            NotReached: If a norm was not reached by any batch of any rank; on all ranks.
        """
        norms = list(self._found)
        device = norms[0].weight.device
        numbers = torch.tensor([len(values) for values in self._found.values()], dtype=torch.float64, device=device)
        rows = [torch.stack(values).sum(0).to(device) if values else
                torch.zeros(2 * norm.num_features, dtype=torch.float64, device=device)
                for norm, values in self._found.items()]
        table = torch.cat([numbers, *rows])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(table)
        counts, *sums = table.split([len(norms), *(len(row) for row in rows)])
        missed = int((counts == 0).sum())
        if missed:
            raise NotReached(f'{missed} of {len(norms)} batch norms to calibrate were not reached by the forward pass '
                             'of any batch')
        return [Statistics(*(total / count).to(norm.weight.device).chunk(2))
                for norm, total, count in zip(norms, sums, counts)]


def batch_statistics(x: Tensor) -> Tuple[Tensor, Tensor]:
    """Mean and unbiased variance per channel of a map of shape (N, C, ...), float64."""
    x = x.detach().transpose(0, 1).flatten(1)
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(x, dim=1, unbiased=x.shape[1] > 1)
    return mean.double(), var.double()


def eval_output(model: nn.Module, part: nn.Module, run: Callable[[Any], Any], batch: Any) -> List[Tensor]:
    """Output of a part of the model on a batch, the part in eval mode, what is in front as it is.

    Args:
        model (nn.Module): The whole model; it is left as it was (`reparam.untouched`).
        part (nn.Module): The backbone.
        run (callable): Runs the model's forward on a batch.
        batch (Any): A batch.

    Returns:
        list[Tensor]: All tensors of the output; empty if the part was not called.
    """
    found: List[Tensor] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        found.extend(tensors_in(output))
        raise Stop

    with passes([part.register_forward_hook(look)], model, part) as through:
        part.eval()
        through(run, batch)
    return found


def tensors_in(value: Any) -> List[Tensor]:
    """All tensors in a nest of lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, (list, tuple)) else []


def drift(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Largest difference between two outputs over the largest value of the first; NaN if that is no number."""
    worst = 0.0
    for first, second in zip(before, after):
        scale = first.abs().max().item()
        change = (first - second).abs().max().item()
        worst = max(worst, change / scale if scale else change) if change == change else float('nan')
    return worst
