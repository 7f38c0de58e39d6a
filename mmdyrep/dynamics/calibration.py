"""Batch norm statistics from batches of an interval (Section 4.1: 20 batches before Eq. 6)."""
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.reparam import Statistics
from mmdyrep.reparam.random_state import random_state_kept


class Stop(Exception):
    """Leaves a forward pass as soon as nothing more is wanted of it."""


@contextmanager
def norms_kept(model: nn.Module) -> Iterator[None]:
    """Put statistics and modes of all batch norms of a model back at the end."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    saved = [(norm, norm.training, [(buffer, buffer.clone()) for buffer in norm.buffers()]) for norm in norms]
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, training, buffers in saved:
                norm.training = training
                for buffer, value in buffers:
                    buffer.copy_(value)


class Calibration:
    """Measures what batch norms get to see on training batches; callable as `reparam.Measure`.

    The network runs as in training and only as far as the norms in question; its own statistics and
    the random state are put back, also when the forward fails.

    Args:
        model (nn.Module): The whole model, in train mode.
        run (callable): Runs the model's forward on a batch.
        batches (Sequence): Batches already seen.
    """

    def __init__(self, model: nn.Module, run: Callable[[Any], Any], batches: Sequence[Any]) -> None:
        if not batches:
            raise ValueError('calibration needs at least one batch')
        self.model, self.run, self.batches = model, run, batches

    @torch.no_grad()
    def __call__(self, norms: Sequence[_BatchNorm]) -> List[Statistics]:
        """Mean over the batches of all ranks of each norm's input mean and unbiased variance.

        Args:
            norms (Sequence[_BatchNorm]): They work in train mode meanwhile, frozen ones, too.

        Returns:
            list[Statistics]: Of shape (C,) each, float64.
        """
        sums: Dict[int, Tuple[Tensor, Tensor]] = {}
        seen = set()

        def look(norm: nn.Module, inputs: Tuple[Tensor, ...]) -> None:
            mean, var = batch_statistics(inputs[0])
            known = sums.get(id(norm))
            sums[id(norm)] = (known[0] + mean, known[1] + var) if known else (mean, var)
            seen.add(id(norm))
            if len(seen) == len(norms):
                raise Stop

        hooks = [norm.register_forward_pre_hook(look) for norm in norms]
        try:
            with random_state_kept(), norms_kept(self.model):
                for norm in norms:
                    norm.training = True
                for batch in self.batches:
                    seen.clear()
                    try:
                        self.run(batch)
                    except Stop:
                        pass
                    if len(seen) < len(norms):
                        raise RuntimeError('a batch norm to calibrate was not reached by the forward pass')
        finally:
            for hook in hooks:
                hook.remove()
        table = torch.cat([torch.cat(sums[id(norm)]) for norm in norms])
        # in front, so that one communication does: ranks may hold different numbers of batches
        table = torch.cat([table.new_tensor([len(self.batches)]), table])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(table)
        table = table[1:] / table[0]
        sizes = [norm.num_features for norm in norms for _ in range(2)]
        parts = iter(table.split(sizes))
        return [Statistics(mean, var) for mean, var in zip(parts, parts)]


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
        model (nn.Module): The whole model; modes, statistics and random state are kept.
        part (nn.Module): The backbone.
        run (callable): Runs the model's forward on a batch.
        batch (Any): A batch.

    Returns:
        list[Tensor]: All tensors of the output.
    """
    found: List[Tensor] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        found.extend(tensors_in(output))
        raise Stop

    modes = [(module, module.training) for module in part.modules()]
    hook = part.register_forward_hook(look)
    try:
        with random_state_kept(), norms_kept(model):
            part.eval()
            try:
                run(batch)
            except Stop:
                pass
    finally:
        hook.remove()
        for module, mode in modes:
            module.training = mode
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
