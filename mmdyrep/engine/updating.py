"""One round of Rep and Dep (lines 7 to 10 of Algorithm 1) on a model and the batches of an interval."""
import math
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np
from torch import nn

from mmdyrep.dynamics import Calibration, Moment, drift, eval_output, importance, macs, pick, rank, redundant
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.finding import is_classifier
from mmdyrep.models.probing import input_shapes, zeros
from mmdyrep.reparam import blocks_of, fitting
from mmdyrep.reparam.surgery import geometry_of


@dataclass(frozen=True)
class Policy:
    """Settings of an update.

    Args:
        num_grow (int): Ops to expand.
        threshold (float, optional): lambda of Dep; None: without Dep.
        bound (float, optional): Greatest importance of a branch that is cut.
        max_macs_ratio (float, optional): Budget, times the plain backbone's MACs.
    """

    num_grow: int = 1
    threshold: Optional[float] = 0.02
    bound: Optional[float] = None
    max_macs_ratio: Optional[float] = None


@dataclass
class Round:
    """What an update works with.

    Args:
        model (nn.Module): The whole model, in train mode.
        backbone (DyRepBackbone): Its backbone.
        run (callable): Runs the model's forward on a batch.
        batches (Sequence): Batches to calibrate on; none: running statistics are used.
        shape (tuple): (C, H, W) that MACs are counted at.
    """

    model: nn.Module
    backbone: DyRepBackbone
    run: Callable[[Any], Any]
    batches: Sequence[Any]
    shape: Sequence[int]


def update(round_: Round, scores: Mapping[str, float], policy: Policy, moment: Moment) -> Dict[str, Any]:
    """Expand the ops of the greatest saliency, then remove redundant branches.

    Returns:
        dict: Entry of the history, without epoch and iteration.
    """
    begin = time.perf_counter()
    backbone, batches = round_.backbone, round_.batches
    measure = Calibration(round_.model, round_.run, batches) if batches else None
    before = eval_output(round_.model, backbone, round_.run, batches[0]) if batches else []

    ranking = rank(scores)
    choice = pick(ranking.ranked, policy.num_grow, *_budget(backbone, round_.shape, policy.max_macs_ratio))
    grown = [{'op': name, 'score': scores[name],
              'branches': backbone.expand(name, generator=moment.generator(name), measure=measure)}
             for name in choice.chosen]
    cut = _cut(backbone, policy, measure) if policy.threshold is not None else []

    after = eval_output(round_.model, backbone, round_.run, batches[0]) if batches else []
    return {
        'scores': [[name, scores[name]] for name in ranking.ranked],
        'unscored': ranking.unscored,
        'tied': ranking.tied,
        'over_budget': choice.over_budget,
        'grown': grown,
        'cut': cut,
        **cost(round_.model, backbone, round_.shape),
        'drift': _finite(drift(before, after)) if batches else None,
        'seconds': round(time.perf_counter() - begin, 3),
    }


def _finite(value: float) -> Optional[float]:
    """None for what JSON has no number for: the run has diverged."""
    return value if math.isfinite(value) else None


def _cut(backbone: DyRepBackbone, policy: Policy, measure: Optional[Calibration]) -> List[Dict[str, Any]]:
    done = []
    # inner blocks first: an outer branch may go with all that is nested in it
    for name in reversed(list(blocks_of(backbone))):
        block = blocks_of(backbone).get(name)
        if block is None or not next(block.parameters()).requires_grad:
            continue
        importances = importance(block)
        branches = redundant(importances, policy.threshold, policy.bound)
        if branches:
            backbone.remove(name, branches, measure=measure)
            values = list(importances.values())
            done.append({'op': name, 'branches': branches, 'importance': importances,
                         'mean': float(np.mean(values)), 'std': float(np.std(values))})
    return done


def _budget(backbone: DyRepBackbone, shape: Sequence[int], ratio: Optional[float]):
    """Cost of expanding an op, and the MACs that may still be added."""
    if ratio is None:
        return (lambda name: 0), None
    counted = macs.count(backbone, zeros(backbone, shape))
    plain = backbone.to_plain()
    base = macs.count(plain, zeros(plain, shape)).total

    def extra(name: str) -> int:
        geometry = geometry_of(backbone.get_submodule(name))
        return macs.of_branches(fitting(backbone.space, geometry), geometry, counted.inputs[name][2:])

    return extra, ratio * base - counted.total


def cost(model: nn.Module, backbone: nn.Module, shape: Sequence[int]) -> Dict[str, Dict[str, int]]:
    """MACs and parameters of the backbone and, where it can be counted (classifiers), of the model.

    Args:
        model (nn.Module): The whole model.
        backbone (nn.Module): Its backbone.
        shape (Sequence[int]): (C, H, W) of the input.
    """
    x = zeros(backbone, shape)
    counted = {'backbone': macs.count(backbone, x).total}
    parameters = {'backbone': macs.parameters(backbone), 'model': macs.parameters(model)}
    if model is not backbone and is_classifier(model):
        counted['model'] = macs.count(model, x, mode='tensor').total
    return {'macs': counted, 'parameters': parameters}


def counting_shape(backbone: DyRepBackbone, batch_shape: Optional[Sequence[int]] = None) -> Sequence[int]:
    """(C, H, W) that MACs are counted at: `input_shape`, else the first batch's, else 224x224."""
    wanted = backbone.input_shape
    if wanted is None and batch_shape is not None:
        return tuple(batch_shape[-3:])
    return input_shapes(backbone, wanted or (224, 224))[0]
