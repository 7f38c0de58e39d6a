"""Scores of the ops at an update, from the steps of the interval and the batches kept of it."""
import time
from typing import Any, Callable, Collection, Dict, List, Tuple, cast

from torch import Tensor, nn

from mmdyrep.dynamics import Key, Metric, Moment, Op, Saliency, build_metric, name_of
from mmdyrep.models import DyRepBackbone

from .updating import Round


def frozen(backbone: DyRepBackbone) -> List[str]:
    """Ops that could be expanded but for their weight, which does not learn at the moment."""
    return [name for name, reason in backbone.skipped().items() if reason == 'frozen']


def ops_of(backbone: DyRepBackbone, also_frozen: bool = False) -> List[Op]:
    """The candidates with their modules, and those that would be if they were not frozen."""
    names = backbone.candidates() + (frozen(backbone) if also_frozen else [])
    return [Op(name, cast(nn.Conv2d, backbone.get_submodule(name)), backbone.norm_behind(name)) for name in names]


def readings(saliency: Saliency) -> int:
    """How many scores of single iterations or batches a metric, or the metrics within it, have read."""
    return sum(saliency.counts.values()) + sum(map(readings, getattr(saliency, 'metrics', {}).values()))


def _measure(saliency: Saliency, round_: Round) -> None:
    saliency.measure(round_.model, cast(Callable[[Any], Tensor], round_.loss), round_.batches, ops_of(round_.backbone))


def score(saliency: Saliency, round_: Round, moment: Moment,
          without: Collection[str] = ()) -> Tuple[Dict[Key, float], Dict[str, Any]]:
    """Scores of the candidates, the same on all ranks; what is measured leaves the model as it is.

    Args:
        saliency (Saliency): Has seen the steps of the interval.
        round_ (Round): Model in train mode, and the batches kept.
        moment (Moment): The update this is for.
        without (Collection[str]): Candidates that are not to be expanded.

    Returns:
        tuple: Scores, and an entry for the history: ``scoring``, with the seconds and the metric's notes.
    """
    begin = time.perf_counter()
    if saliency.batches:
        _measure(saliency, round_)
    scores = saliency.scores([name for name in round_.backbone.candidates() if name not in without], moment)
    return scores, {'scoring': {**saliency.notes, 'seconds': round(time.perf_counter() - begin, 3)}}


def try_metric(metric: Metric, round_: Round) -> None:
    """Measure once on one batch, so that a model without second derivatives is refused before its training.

    Args:
        metric (str or dict): A metric of this configuration, not the one that scores the run.
        round_ (Round): With one batch.

    Raises:
        RuntimeError: As the metric raises it.
    """
    saliency = build_metric(metric)
    if saliency.batches:
        round_.batches = list(round_.batches) * saliency.batches
        _measure(saliency, round_)


def check_metric(metric: Metric, calibration_batches: int, interval: int,
                 by_epoch: bool) -> Saliency:
    """The metric, if it can work with these settings of the hook.

    Raises:
        ValueError: If it is unknown, or needs more batches than there are.
    """
    try:
        saliency = build_metric(metric)
    except ValueError as error:
        raise ValueError(f'DyRepHook: {error}') from error
    there = calibration_batches if by_epoch else min(calibration_batches, interval)
    if saliency.batches > there:
        raise ValueError(f'DyRepHook: the metric {metric} needs {saliency.batches} batches at each update; raise '
                         f'calibration_batches, now {calibration_batches}' + (
                             '' if by_epoch else f', and interval, now {interval} iterations'))
    return saliency


def metric_settings(metric: Metric) -> Dict[str, Any]:
    """What the history tells of the metric: its name and, if it was given as a dict, that."""
    return {'metric': name_of(metric), **({} if isinstance(metric, str) else {'metric_options': dict(metric)})}
