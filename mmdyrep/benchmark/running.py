"""One run of the benchmark: all sections, each a list of rows."""
import os
import platform
import sys
import time
from dataclasses import asdict, replace
from typing import Any, Dict, List

import torch

from mmdyrep.version import __version__

from . import cases
from .cases import Evaluation, Iteration, Options, place
from .measuring import interleaved, kept_bytes, peak_bytes

Row = Dict[str, Any]


def run(options: Options) -> Dict[str, Any]:
    """Measure.

    Returns:
        dict: ``settings``, ``machine`` and ``sections``: rows by the name of the section.
    """
    unknown = set(options.only) - set(cases.SECTIONS)
    if unknown:
        raise ValueError(f'unknown sections {sorted(unknown)}; there are {list(cases.SECTIONS)}')
    if options.quick:
        options = replace(options, batch=2, size=64, block_batch=2, rounds=1)
    begin = time.time()
    torch.manual_seed(0)
    measure = {'blocks': _blocks, 'training': _training, 'evaluation': _evaluation}
    sections = {name: measure[name](options) for name in cases.SECTIONS if name in options.only}
    return {'version': 1, 'settings': asdict(options), 'machine': _machine(options), 'sections': sections,
            'seconds': round(time.time() - begin, 1)}


def _machine(options: Options) -> Dict[str, Any]:
    load = os.getloadavg() if hasattr(os, 'getloadavg') else None
    return {'command': ' '.join(sys.argv), 'threads': torch.get_num_threads(), 'cores': os.cpu_count(),
            'load': load and [round(value, 1) for value in load],
            'device': torch.cuda.get_device_name(options.device) if options.device != 'cpu' else platform.processor(),
            'torch': torch.__version__, 'python': platform.python_version(), 'mmdyrep': __version__}


def _rows(times: Dict[str, Any], memory: Dict[str, int], what: str, **more: Any) -> List[Row]:
    base = memory[next(iter(memory))] if memory else None
    return [{**more, 'name': name, 'seconds': value.seconds, 'time_ratio': value.ratio,
             **({what: memory[name], 'memory_ratio': memory[name] / base} if memory else {})}
            for name, value in times.items()]


def _blocks(options: Options) -> List[Row]:
    rows, device = [], torch.device(options.device)
    for channels, size in cases.SHAPES[:1] if options.quick else cases.SHAPES:
        blocks = {name: place(block, options) for name, block in cases.blocks(channels).items()}
        x = place(torch.randn(options.block_batch, channels, size, size), options).requires_grad_()

        def step(block: torch.nn.Module, x: torch.Tensor = x) -> None:
            with torch.autocast(options.device, enabled=options.amp):
                out = block(x)
            out.backward(torch.ones_like(out))
            x.grad = None
            block.zero_grad()

        runs = {name: (lambda block=block: step(block)) for name, block in blocks.items()}
        times = interleaved(runs, options.rounds * (1 if options.quick else 10), device)
        kept = {name: kept_bytes(block, x) for name, block in blocks.items()}
        rows += _rows(times, kept, 'kept_bytes', shape=f'{channels}@{size}')
    return rows


def _training(options: Options) -> List[Row]:
    rows, device = [], torch.device(options.device)
    for network in options.networks:
        # one after the other would take less memory, but not the same moment of a shared machine
        iterations = {name: Iteration(make(), options) for name, make in cases.networks(network).items()}
        times = interleaved(iterations, options.rounds, device)
        peaks = {}
        for name, iteration in iterations.items():
            iteration.optimizer.zero_grad()
            peaks[name] = peak_bytes(iteration, iteration.standing, device)
        rows += _rows(times, peaks, 'peak_bytes', network=network)
    return rows


def _evaluation(options: Options) -> List[Row]:
    rows, device = [], torch.device(options.device)
    kinds = ('plain', 'static seven, fixed statistics', 'four blocks of seven, fixed statistics')
    for network in options.networks:
        makers = cases.networks(network)
        for batch in sorted({1, options.batch}):
            runs = {name: Evaluation(makers[name](), replace(options, batch=batch)) for name in kinds}
            for evaluation in runs.values():
                evaluation()  # the second call of a block in a row keeps its kernel
            times = interleaved(runs, options.rounds * (5 if batch == 1 else 1), device)
            rows += _rows(times, {}, '', network=network, batch=batch)
    return rows
