"""Scores of the ops at an update, from the steps of the interval and the batches kept of it."""
import time
from typing import Any, Dict, List, Tuple

from torch import Tensor

from mmdyrep.dynamics import Key, Metric, Moment, Op, Saliency, build_metric, name_of
from mmdyrep.models import DyRepBackbone

from .updating import Round


def ops_of(backbone: DyRepBackbone) -> List[Op]:
    """The candidates with their modules."""
    return [Op(name, backbone.get_submodule(name), backbone.norm_behind(name)) for name in backbone.candidates()]


def _measure(saliency: Saliency, round_: Round) -> None:
    model = round_.model

    def loss(batch: Any) -> Tensor:
        return model.parse_losses(round_.exact_run(batch))[0]

    saliency.measure(model, loss, round_.batches, ops_of(round_.backbone))


def score(saliency: Saliency, round_: Round, moment: Moment) -> Tuple[Dict[Key, float], Dict[str, Any]]:
    """Scores of the candidates, the same on all ranks; what is measured leaves the model as it is.

    Args:
        saliency (Saliency): Has seen the steps of the interval.
        round_ (Round): Model in train mode, and the batches kept.
        moment (Moment): The update this is for.

    Returns:
        tuple: Scores, and an entry for the history: ``scoring``, with the seconds and the metric's notes.
    """
    begin = time.perf_counter()
    if saliency.batches:
        _measure(saliency, round_)
    scores = saliency.scores(round_.backbone.candidates(), moment)
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
