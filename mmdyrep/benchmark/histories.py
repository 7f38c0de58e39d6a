"""A whole training: the structures that a run has had, each timed, weighted by its share of the iterations."""
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import torch

from mmdyrep.engine.history import read_history, structure_path
from mmdyrep.fileio import read_json
from mmdyrep.models import DyRepBackbone

from .cases import Options, place
from .measuring import interleaved, peak_bytes
from .networks import Iteration, trainable


class Span(NamedTuple):
    """A structure, and the share of the training's iterations that had it."""

    ops: Dict[str, Any]
    share: float


def spans(file: Path) -> Tuple[Dict[str, Any], List[Span]]:
    """Content of a ``history.json`` and what its run looked like over time, plain at first.

    Raises:
        ValueError: If it tells of no iteration, or began with blocks.
    """
    history = read_history(file)
    points = [{'iter': 0, 'epoch': 0}, *history['updates']]
    ends = [point['iter'] for point in points[1:]] + [max(history['iterations'], points[-1]['iter'])]
    key = 'epoch' if history['settings'].get('by_epoch', True) else 'iter'
    total = ends[-1]
    if not total:
        raise ValueError(f'{file} tells of no iteration')
    found: List[Span] = []
    for point, end in zip(points, ends):
        path = structure_path(file.parent, point[key])
        ops = read_json(path)['ops'] if point is not points[0] else {}
        share = (end - point['iter']) / total
        if found and found[-1].ops == ops:
            share += found.pop().share
        if share:
            found.append(Span(ops, share))
    return history, found


def _backbone(config: str) -> Any:
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    cfg = Config.fromfile(config)
    DefaultScope.get_instance('mmdyrep-benchmark', scope_name=cfg.get('default_scope', 'mmpretrain'))
    own = cfg.model.backbone
    return own.backbone if own.get('type') == 'DyRepBackbone' else own


def measured(options: Options) -> List[Dict[str, Any]]:
    """Rows: the plain backbone, the run as it was and with ``online``; time integrated, memory at its most.

    There are no rows if the options name no run.
    """
    from mmengine.registry import MODELS
    if options.history is None:
        return []
    config, history_file = options.history
    history, found = spans(Path(history_file))
    inner, device = _backbone(config), torch.device(options.device)
    batch = 2 if options.quick else options.batch
    x = place(torch.randn(batch, *history['settings']['input_shape'],
                          generator=torch.Generator().manual_seed(0)), options)

    def iteration(span: Span, online: bool) -> Iteration:
        structure = {'version': 1, 'ops': span.ops}
        return Iteration(trainable(DyRepBackbone(inner, structure=structure, online=online)), x, options)

    iterations = {('plain', 0): Iteration(trainable(MODELS.build(inner)), x, options)}
    for number, span in enumerate(found):
        for name in ('the run', 'the run, online'):
            iterations[name, number] = iteration(span, name.endswith('online'))
    times = interleaved(iterations, options.rounds, device)
    peaks = {key: peak_bytes(run, run.standing, device) for key, run in iterations.items()}
    rows = [{'name': 'plain', 'seconds': times['plain', 0].seconds, 'time_ratio': 1.0,
             'peak_bytes': peaks['plain', 0], 'memory_ratio': 1.0}]
    for name in ('the run', 'the run, online'):
        keys = [(name, number) for number in range(len(found))]
        most = max(peaks[key] for key in keys)
        rows.append({'name': name, 'peak_bytes': most, 'memory_ratio': most / peaks['plain', 0],
                     **{field: sum(getattr(times[key], own) * span.share for key, span in zip(keys, found))
                        for field, own in (('seconds', 'seconds'), ('time_ratio', 'ratio'))}})
    return rows
