"""Batch norm statistics from batches of an interval (Section 4.1: 20 batches before Eq. 6)."""
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.reparam import Statistics
from mmdyrep.reparam.untouched import untouched


class Stop(Exception):
    """Leaves a forward pass as soon as nothing more is wanted of it."""


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

    @torch.no_grad()
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
        found: Dict[nn.Module, List[Tensor]] = {norm: [] for norm in norms}
        calls: Dict[Optional[nn.Module], int] = {}

        def called(module: Optional[nn.Module], of: Sequence[nn.Module]) -> None:
            calls[module] = calls.get(module, 0) + 1
            if all(calls.get(other, 0) >= self.calls for other in of):
                raise Stop

        def look(norm: nn.Module, inputs: Tuple[Tensor, ...]) -> None:
            found[norm].append(torch.cat(batch_statistics(inputs[0])))
            called(norm, norms)

        hooks = [norm.register_forward_pre_hook(look) for norm in norms]
        if self.part is not None:
            hooks.append(self.part.register_forward_hook(lambda part, inputs, output: called(part, [part])))
        try:
            with untouched(self.model):
                for norm in norms:
                    norm.training = norm.training or not fixed
                for batch in self.batches:
                    calls.clear()
                    try:
                        self.run(batch)
                    except Stop:
                        pass
                    except Exception:
                        # a step that needs gradients between two passes (adversarial training): the first counts
                        if not calls.get(self.part):
                            raise
        finally:
            for hook in hooks:
                hook.remove()
        return _means(norms, found)


def _means(norms: Sequence[_BatchNorm], found: Dict[nn.Module, List[Tensor]]) -> List[Statistics]:
    """Means over all passes of all ranks, in one communication: ranks may have found different numbers."""
    device = norms[0].weight.device
    rows = [torch.stack(found[norm]).sum(0).to(device) if found[norm] else
            torch.zeros(2 * norm.num_features, dtype=torch.float64, device=device) for norm in norms]
    table = torch.cat([torch.tensor([len(found[norm]) for norm in norms], dtype=torch.float64, device=device), *rows])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(table)
    counts, *sums = table.split([len(norms), *(len(row) for row in rows)])
    missed = int((counts == 0).sum())
    if missed:
        raise NotReached(f'{missed} of {len(norms)} batch norms to calibrate were not reached by the forward pass of '
                         'any batch')
    return [Statistics(*(total / count).to(norm.weight.device).chunk(2))
            for norm, total, count in zip(norms, sums, counts)]


def batch_statistics(x: Tensor) -> Tuple[Tensor, Tensor]:
    """Mean and unbiased variance per channel of a map of shape (N, C, ...), float64."""
    x = x.detach().transpose(0, 1).flatten(1)
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(x, dim=1, unbiased=x.shape[1] > 1)
    return mean.double(), var.double()


@torch.no_grad()
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

    hook = part.register_forward_hook(look)
    try:
        with untouched(model, part):
            part.eval()
            try:
                run(batch)
            except Stop:
                pass
    finally:
        hook.remove()
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
