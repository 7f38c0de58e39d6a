"""One round of Rep and Dep (lines 7 to 10 of Algorithm 1) on a model and the batches of an interval."""
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from torch import Tensor, nn

from mmdyrep.dynamics import (
    Calibration,
    Inputs,
    Key,
    Moment,
    NotReached,
    drift,
    eval_output,
    importance,
    pick,
    rank,
    redundant,
)
from mmdyrep.models import DyRepBackbone
from mmdyrep.reparam import blocks_of

from .calibrating import calibrate
from .costs import budget, cost, parts
from .distributed import greatest, true_on_all
from .ema import Averaged
from .memory import ran_out_of_memory
from .restoring import all_or_nothing


@dataclass(frozen=True)
class Policy:
    """Settings of an update.

    Args:
        num_grow (int): Ops to expand.
        threshold (float, optional): lambda of Dep; None: without Dep.
        bound (float, optional): Greatest importance of a branch that is cut.
        max_macs_ratio (float, optional): Budget, times the plain backbone's MACs.
        tolerance (float): Drift, relative, that an update may cause.
        unbiased (bool): Compare the sample deviation of the importances with the threshold.
    """

    num_grow: int = 1
    threshold: Optional[float] = 0.02
    bound: Optional[float] = None
    max_macs_ratio: Optional[float] = None
    tolerance: float = 1e-3
    unbiased: bool = False


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
        calls (int): Forward passes through the backbone that one batch makes.
        loss (callable, optional): The model's loss on a batch, in the precision of the weights, with its graph.
    """

    model: nn.Module
    backbone: DyRepBackbone
    run: Callable[[Any], Any]
    batches: Sequence[Any]
    shape: Sequence[int]
    copies: Sequence[Averaged] = ()
    exact_run: Optional[Callable[[Any], Any]] = None
    calls: int = 1
    loss: Optional[Callable[[Any], Tensor]] = None


class Drifted(Exception):
    """An expansion or a removal has moved the output; the whole update is to be undone.

    Args:
        what (dict): ``op``, ``doing`` ('expanding' or 'removing'), ``of`` (whose output) and ``drift``, None where
            the output is no finite number any more.
        entry (dict): Of the history, as far as it is known.
    """

    def __init__(self, what: Dict[str, Any], entry: Dict[str, Any]) -> None:
        super().__init__(what)
        self.what, self.entry = what, entry


@contextmanager
def _naming(doing: str) -> Iterator[None]:
    """Tell in the message of an error which op it was about."""
    try:
        yield
    except NotReached:
        raise
    except Exception as error:
        advice = '; set max_macs_ratio or a smaller batch' if ran_out_of_memory(error) else ''
        raise RuntimeError(f'DyRep: {doing} failed, the training is as it was before: {error}{advice}') from error


def update(round_: Round, scores: Mapping[Key, float], policy: Policy, moment: Moment,
           uncut: Collection[str] = ()) -> Dict[str, Any]:
    """Expand the ops of the greatest saliency, then remove redundant branches.

    A network whose output is no finite number (a training that has diverged) is left alone. An op whose norms no batch
    has reached is passed over for the next.

    Args:
        round_ (Round): What to work with.
        scores (Mapping[Key, float]): Of the ops, or single branches of ops, that may be expanded.
        policy (Policy): Settings.
        moment (Moment): For random draws.
        uncut (Collection[str]): Blocks that keep their branches.

    Returns:
        dict: Entry of the history, without epoch and iteration.

    Raises:
        Drifted: If a step has moved the output of the backbone, or of its averaged copy, beyond ``policy.tolerance``;
            what has been done stays.
        RuntimeError: If it fails half way, with the op; what has been done stays.
    """
    begin = time.perf_counter()
    backbone, batches = round_.backbone, round_.batches
    inputs = None
    if batches:
        inputs = Inputs(Calibration(round_.model, round_.run, batches, backbone, round_.calls), backbone)
    watch = _DriftWatch(round_, policy.tolerance)
    if not watch.sound:
        scores = dict.fromkeys(scores, math.nan)
    ranking = rank(scores)
    limits = budget(backbone, round_.shape, policy.max_macs_ratio)
    if watch.sound and inputs:
        foreseen = [parts(key)[0] for key in pick(ranking.ranked, policy.num_grow, *limits).chosen]
        foreseen += [name for name, _ in _cuts(round_, policy, uncut)]
        with _naming('calibrating'):
            calibrate(backbone, round_.copies, partial(inputs.collect, list(dict.fromkeys(foreseen))))
    entry: Dict[str, Any] = {
        'scores': [[written(key), scores[key]] for key in ranking.ranked],
        'unscored': [written(key) for key in ranking.unscored], 'tied': [written(key) for key in ranking.tied],
        'over_budget': [], 'passed_over': [], 'grown': [], 'cut': []}

    def grow(key: Key) -> bool:
        with _passing_over(round_, key, entry):
            name, branches = _expand(round_, key, moment, inputs)
            entry['grown'].append({'op': name, 'score': scores[key], 'branches': branches})
            watch.look('expanding', name, entry)
            return True
        return False

    choice = pick(ranking.ranked, policy.num_grow, *limits, take=grow)
    entry['over_budget'] = [written(key) for key in choice.over_budget]
    if watch.sound:
        _cut(round_, policy, inputs, uncut, entry, watch)
    entry.update(cost(round_.model, backbone, round_.shape), drift=watch.drifts[0] if watch.drifts else None)
    if round_.copies:
        entry['drift_ema'] = max(watch.drifts[1:]) if watch.drifts else None
    return {**entry, 'seconds': round(time.perf_counter() - begin, 3)}


def undone(round_: Round, moved: Drifted) -> Dict[str, Any]:
    """Entry of the history of an update that was taken back as a whole."""
    entry = {**moved.entry, 'grown': [], 'cut': [], 'undone': moved.what,
             **cost(round_.model, round_.backbone, round_.shape), 'drift': 0.0, 'seconds': 0.0}
    return {**entry, **({'drift_ema': 0.0} if round_.copies else {})}


class _DriftWatch:
    """Eval output of the backbone, and of its averaged copies, on the first batch, before and after each step."""

    def __init__(self, round_: Round, tolerance: float) -> None:
        self._round, self._tolerance = round_, tolerance
        self._before = self._outputs()
        self.sound = _finite(self._before)
        # without an output the backbone is not called as a module: nothing can be told
        self.drifts: List[float] = [0.0 for _ in self._before] if self.sound and all(self._before) else []

    def _outputs(self) -> List[List[Tensor]]:
        if not self._round.batches:
            return []
        parts = [(self._round.model, self._round.backbone, self._round.exact_run or self._round.run)]
        parts += [(copy.model, copy.backbone, copy.run) for copy in self._round.copies]
        return [eval_output(*part, self._round.batches[0]) for part in parts]

    def look(self, doing: str, op: str, entry: Dict[str, Any]) -> None:
        """Compare with the start.

        Raises:
            Drifted: If an output has moved too far; on all ranks.
        """
        if not self.drifts:
            return
        after = self._outputs()
        finite = _finite(after)
        # other ranks have other images
        self.drifts = greatest([drift(*pair) if finite else math.inf for pair in zip(self._before, after)])
        worst = max(self.drifts)
        if not worst <= self._tolerance:
            of = "backbone's" if self.drifts[0] == worst or not finite else "averaged backbone's"
            raise Drifted({'op': op, 'doing': doing, 'of': of, 'drift': worst if finite else None}, entry)


def _finite(outputs: List[List[Tensor]]) -> bool:
    # other ranks have other images
    return true_on_all(all(bool(tensor.isfinite().all()) for output in outputs for tensor in output))


@contextmanager
def _passing_over(round_: Round, key: Key, entry: Dict[str, Any]) -> Iterator[None]:
    """Undo what is done to an op whose norms are never reached, and note it."""
    try:
        with all_or_nothing([round_.backbone, *(copy.backbone for copy in round_.copies)]):
            yield
    except NotReached as missed:
        entry['passed_over'].append([written(key), str(missed)])


def written(key: Key) -> str:
    """What a score is of, in words."""
    return key if isinstance(key, str) else f'{key[0]} by {key[1]}'


def _expand(round_: Round, key: Key, moment: Moment, inputs: Optional[Inputs]) -> Tuple[str, List[str]]:
    name, wanted = parts(key)
    with _naming(f'expanding {name}'):
        branches = round_.backbone.expand(name, wanted, generator=moment.generator(written(key)),
                                          measure=inputs.of(name) if inputs else None)
        for copy in round_.copies:
            copy.expand(round_.backbone, name, branches)
    return name, branches


def _cuts(round_: Round, policy: Policy, uncut: Collection[str]) -> Iterator[Tuple[str, List[str]]]:
    """Blocks that are to lose branches, and which, as they are when it is their turn.

    Inner blocks come first: an outer branch may go with all that is nested in it.
    """
    if policy.threshold is None:
        return
    backbone = round_.backbone
    for name in reversed(list(blocks_of(backbone))):
        block = blocks_of(backbone).get(name)
        if block is None or name in uncut or not next(block.parameters()).requires_grad:
            continue
        branches = redundant(importance(block), policy.threshold, policy.bound, policy.unbiased)
        if branches:
            yield name, branches


def _cut(round_: Round, policy: Policy, inputs: Optional[Inputs], uncut: Collection[str], entry: Dict[str, Any],
         watch: _DriftWatch) -> None:
    backbone = round_.backbone
    for name, branches in _cuts(round_, policy, uncut):
        importances = importance(blocks_of(backbone)[name])
        with _passing_over(round_, name, entry):
            with _naming(f'removing {", ".join(branches)} from {name}'):
                backbone.remove(name, branches, measure=inputs.of(name) if inputs else None)
                for copy in round_.copies:
                    copy.remove(backbone, name, branches)
            values = list(importances.values())
            entry['cut'].append({'op': name, 'branches': branches, 'importance': importances,
                                 'mean': float(np.mean(values)),
                                 'std': float(np.std(values, ddof=int(policy.unbiased)))})
            watch.look('removing', name, entry)
