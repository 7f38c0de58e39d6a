"""One run of the benchmark: all sections, each a list of rows."""
import os
import platform
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch

from mmdyrep.version import __version__

from . import cases, histories, updates
from .cases import Options, place
from .measuring import interleaved, kept_bytes, peak_bytes
from .networks import Evaluation, Iteration, Wrap, build, images, kind_of, wraps

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
    begin, others = time.time(), _Others()
    torch.manual_seed(0)
    measure = {'blocks': _blocks, 'training': _training, 'evaluation': _evaluation, 'updates': _updates,
               'history': _history}
    wanted = [name for name in cases.SECTIONS if name in options.only]
    sections = {name: rows for name in wanted for rows in [measure[name](options)] if rows}
    return {'version': 1, 'settings': asdict(options), 'machine': {**_machine(options), 'others': others.share()},
            'sections': sections, 'seconds': round(time.time() - begin, 1)}


class _Others:
    """How much of the machine others take."""

    def __init__(self) -> None:
        self._begin = self._now()

    def share(self) -> Optional[float]:
        """Of the cores' time since the start, 0 to 1; None where the system doesn't tell."""
        end = self._now()
        if self._begin is None or end is None:
            return None
        wall, busy, own = (now - before for now, before in zip(end, self._begin))
        return round(max(0.0, busy - own) / (wall * (os.cpu_count() or 1)), 3)

    def _now(self) -> Optional[Tuple[float, float, float]]:
        """Seconds: of the clock, of all cores at work, of this process."""
        try:
            user, nice, system, _, _, *interrupts = map(int, Path('/proc/stat').read_text().split(None, 9)[1:9])
        except (OSError, ValueError):
            return None
        return (time.time(), (user + nice + system + sum(interrupts)) / os.sysconf('SC_CLK_TCK'), time.process_time())


def _machine(options: Options) -> Dict[str, Any]:
    return {'command': ' '.join(sys.argv), 'threads': torch.get_num_threads(), 'cores': os.cpu_count(),
            'device': torch.cuda.get_device_name(options.device) if options.device != 'cpu' else platform.processor(),
            'torch': torch.__version__, 'python': platform.python_version(), 'mmdyrep': __version__}


def _rows(times: Dict[str, Any], memory: Dict[str, int], what: str, **more: Any) -> List[Row]:
    base = next(iter(memory.values()), 0)
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

        runs = {name: partial(step, block) for name, block in blocks.items()}
        times = interleaved(runs, options.rounds * (1 if options.quick else 10), device)
        kept = {name: kept_bytes(block, x) for name, block in blocks.items()}
        rows += _rows(times, kept, 'kept_bytes', shape=f'{channels}@{size}')
    return rows


def _chosen(network: str, options: Options, evaluation: bool = False) -> List[Tuple[str, Wrap]]:
    return [(name, wrap) for name, wrap in wraps(network, evaluation).items()
            if name == 'plain' or not options.rows or any(part in name for part in options.rows)]


def _training(options: Options) -> List[Row]:
    rows, device = [], torch.device(options.device)
    for network in options.networks:
        x = images(network, options)
        # one after the other would take less memory, but not the same moment of a shared machine
        iterations = {name: Iteration(build(network, wrap), x, options) for name, wrap in _chosen(network, options)}
        times = interleaved(iterations, options.rounds, device)
        peaks = {}
        for name, iteration in iterations.items():
            iteration.optimizer.zero_grad()
            peaks[name] = peak_bytes(iteration, iteration.standing, device)
        rows += _rows(times, peaks, 'peak_bytes', network=network)
    return rows


def _evaluation(options: Options) -> List[Row]:
    rows, device = [], torch.device(options.device)
    for network in options.networks:
        for batch in sorted({1, options.batch}):
            x = images(network, options, batch)
            runs = {name: Evaluation(wrap(kind_of(network).backbone()), x, options)
                    for name, wrap in _chosen(network, options, evaluation=True)}
            for evaluation in runs.values():
                evaluation()  # the second call of a block in a row keeps its kernel
            times = interleaved(runs, options.rounds * (5 if batch == 1 else 1), device)
            rows += _rows(times, {}, '', network=network, batch=batch)
    return rows


def _updates(options: Options) -> List[Row]:
    return [row for network in options.networks if not kind_of(network).detector
            for row in updates.measured(network, options)]


def _history(options: Options) -> List[Row]:
    return histories.measured(options)
