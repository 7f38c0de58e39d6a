"""Times of several things side by side, bytes kept for backward, peak memory."""
import time
from operator import methodcaller
from statistics import median
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Run = Callable[[], Any]
Name = TypeVar('Name')


class Times(NamedTuple):
    """Median seconds, and the median over rounds of the ratio to the first thing that was timed."""

    seconds: float
    ratio: float


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def interleaved(runs: Mapping[Name, Run], rounds: int, device: torch.device) -> Dict[Name, Times]:
    """Time things in turn, so that a machine which gets slower does so for all of them.

    Args:
        runs (dict): What to call, by name; ratios are to the first.
        rounds (int): Calls of each, after one that does not count.
        device (torch.device): Where they run.
    """
    taken: Dict[Name, List[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            synchronize(device)
            begin = time.perf_counter()
            run()
            synchronize(device)
            if number:
                taken[name].append(time.perf_counter() - begin)
    first = taken[next(iter(runs))]
    return {name: Times(median(values), median(value / base for value, base in zip(values, first)))
            for name, values in taken.items()}


def kept_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for backward, each storage once; parameters and buffers don't count."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    kept: Dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x)
    del out
    return sum(kept.values())


def peak_bytes(run: Run, standing: int, device: torch.device) -> int:
    """Most bytes of tensors that are there at a time while something runs.

    Args:
        run (callable): What runs.
        standing (int): Bytes that are there before it begins (CPU; a CUDA device knows itself).
        device (torch.device): Where it runs.
    """
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.kineto_results.events() if event.name() == '[memory]']
    # torch 2.1 counts in microseconds, today's in nanoseconds
    start = 'start_ns' if events and hasattr(events[0], 'start_ns') else 'start_us'
    now = most = 0
    for event in sorted(events, key=methodcaller(start)):
        now += event.nbytes()
        most = max(most, now)
    return standing + most


def bytes_of(tensors: List[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
