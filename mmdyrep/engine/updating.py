"""One round of Rep and Dep (lines 7 to 10 of Algorithm 1) on a model and the batches of an interval."""
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from torch import Tensor, nn

from mmdyrep.dynamics import Calibration, Key, Moment, drift, eval_output, importance, macs, pick, rank, redundant
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.finding import is_classifier
from mmdyrep.models.probing import input_shapes, zeros
from mmdyrep.reparam import blocks_of, fitting
from mmdyrep.reparam.surgery import geometry_of

from .distributed import true_on_all
from .ema import Averaged
from .memory import ran_out_of_memory


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
        copies (Sequence[Averaged]): Averaged copies of the model, which follow.
        exact_run (callable, optional): As ``run``, in the precision of the weights. Defaults to ``run``.
    """

    model: nn.Module
    backbone: DyRepBackbone
    run: Callable[[Any], Any]
    batches: Sequence[Any]
    shape: Sequence[int]
    copies: Sequence[Averaged] = ()
    exact_run: Optional[Callable[[Any], Any]] = None


@contextmanager
def _naming(doing: str) -> Iterator[None]:
    """Tell in the message of an error which op it was about."""
    try:
        yield
    except Exception as error:
        advice = '; set max_macs_ratio or a smaller batch' if ran_out_of_memory(error) else ''
        raise RuntimeError(f'DyRep: {doing} failed, the training is as it was before: {error}{advice}') from error


def update(round_: Round, scores: Mapping[Key, float], policy: Policy, moment: Moment) -> Dict[str, Any]:
    """Expand the ops of the greatest saliency, then remove redundant branches.

    A network whose output is no finite number (a training that has diverged) is left alone.

    Returns:
        dict: Entry of the history, without epoch and iteration.

    Raises:
        RuntimeError: If it fails half way, with the op; what has been done stays.
    """
    begin = time.perf_counter()
    backbone, batches = round_.backbone, round_.batches
    measure = Calibration(round_.model, round_.run, batches) if batches else None
    before = _outputs(round_)
    sound = _finite(before)
    if not sound:
        scores = dict.fromkeys(scores, math.nan)

    ranking = rank(scores)
    choice = pick(ranking.ranked, policy.num_grow, *_budget(backbone, round_.shape, policy.max_macs_ratio))
    grown = [_grow(round_, key, scores[key], moment, measure) for key in choice.chosen]
    cut = _cut(round_, policy, measure) if sound and policy.threshold is not None else []

    after = _outputs(round_) if sound else before
    if sound and not _finite(after):
        raise RuntimeError(f'DyRep: the network has no finite output any more after {describe(grown, cut)}')
    drifts = [drift(*pair) for pair in zip(before, after)] if sound else []
    return {
        'scores': [[written(key), scores[key]] for key in ranking.ranked],
        'unscored': [written(key) for key in ranking.unscored],
        'tied': [written(key) for key in ranking.tied],
        'over_budget': [written(key) for key in choice.over_budget],
        'grown': grown,
        'cut': cut,
        **cost(round_.model, backbone, round_.shape),
        'drift': drifts[0] if drifts else None,
        **({'drift_ema': max(drifts[1:]) if drifts else None} if round_.copies else {}),
        'seconds': round(time.perf_counter() - begin, 3),
    }


def _outputs(round_: Round) -> List[List[Tensor]]:
    """Eval output of the backbone, and of its averaged copies, on the first batch; nothing without batches."""
    if not round_.batches:
        return []
    parts = [(round_.model, round_.backbone, round_.exact_run or round_.run)]
    parts += [(copy.model, copy.backbone, copy.run) for copy in round_.copies]
    return [eval_output(*part, round_.batches[0]) for part in parts]


def _finite(outputs: List[List[Tensor]]) -> bool:
    # other ranks have other images
    return true_on_all(all(bool(tensor.isfinite().all()) for output in outputs for tensor in output))


def describe(grown: Sequence[Mapping[str, Any]], cut: Sequence[Mapping[str, Any]]) -> str:
    """What an update did, in words."""
    parts = [f'expanding {item["op"]}' for item in grown]
    parts += [f'removing {", ".join(item["branches"])} from {item["op"]}' for item in cut]
    return ' and '.join(parts) or 'no change'


def _parts(key: Key) -> Tuple[str, Optional[List[str]]]:
    """Op of a score, and the branches that it is of; None: all that are missing."""
    return (key, None) if isinstance(key, str) else (key[0], [key[1]])


def written(key: Key) -> str:
    """What a score is of, in words."""
    return key if isinstance(key, str) else f'{key[0]} by {key[1]}'


def _grow(round_: Round, key: Key, score: float, moment: Moment, measure: Optional[Calibration]) -> Dict[str, Any]:
    name, wanted = _parts(key)
    with _naming(f'expanding {name}'):
        branches = round_.backbone.expand(name, wanted, generator=moment.generator(written(key)), measure=measure)
        for copy in round_.copies:
            copy.expand(round_.backbone, name, branches)
    return {'op': name, 'score': score, 'branches': branches}


def _cut(round_: Round, policy: Policy, measure: Optional[Calibration]) -> List[Dict[str, Any]]:
    done, backbone = [], round_.backbone
    # inner blocks first: an outer branch may go with all that is nested in it
    for name in reversed(list(blocks_of(backbone))):
        block = blocks_of(backbone).get(name)
        if block is None or not next(block.parameters()).requires_grad:
            continue
        importances = importance(block)
        branches = redundant(importances, policy.threshold, policy.bound)
        if branches:
            with _naming(f'removing {", ".join(branches)} from {name}'):
                backbone.remove(name, branches, measure=measure)
                for copy in round_.copies:
                    copy.remove(backbone, name, branches)
            values = list(importances.values())
            done.append({'op': name, 'branches': branches, 'importance': importances,
                         'mean': float(np.mean(values)), 'std': float(np.std(values))})
    return done


def _budget(backbone: DyRepBackbone, shape: Sequence[int], ratio: Optional[float]):
    """Cost of expanding an op, and the MACs that may still be added."""
    if ratio is None:
        return (lambda key: 0), None
    counted = macs.count(backbone, zeros(backbone, shape))
    plain = backbone.to_plain()
    base = macs.count(plain, zeros(plain, shape)).total

    def extra(key: Key) -> int:
        name, wanted = _parts(key)
        geometry = geometry_of(backbone.get_submodule(name))
        return macs.of_branches(wanted or fitting(backbone.space, geometry), geometry, counted.inputs[name][2:])

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
