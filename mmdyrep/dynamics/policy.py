"""Which op grows and which branches go."""
import math
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np
from torch import Tensor

from mmdyrep.reparam import Block


class Ranking(NamedTuple):
    """Ops by score, the greatest first; equal scores in the order of the network."""

    ranked: List[str]
    unscored: List[str]  # NaN or infinite
    tied: List[str]  # ops that share the greatest score, if more than one


def rank(scores: Mapping[Any, float]) -> Ranking:
    """Order ops by saliency (line 8 of Algorithm 1); scores that are no finite number don't take part.

    Args:
        scores (Mapping[Any, float]): By op, or by (op, branch), in the order of the network.
    """
    finite = [name for name, score in scores.items() if math.isfinite(score)]
    ranked = sorted(finite, key=lambda name: -scores[name])
    tied = [name for name in ranked if scores[name] == scores[ranked[0]]]
    return Ranking(ranked, [name for name in scores if name not in set(finite)], tied if len(tied) > 1 else [])


def pick(ranked: Sequence[str], number: int, cost: Callable[[str], int], budget: Optional[float],
         take: Callable[[str], bool] = lambda name: True) -> 'Pick':
    """Take the first ops of a ranking that the budget has room for.

    Args:
        ranked (Sequence[str]): Names, the most wanted first.
        number (int): How many to take at most.
        cost (callable): MACs that expanding an op adds.
        budget (float, optional): MACs that may be added in all. Defaults to no limit.
        take (callable, optional): Does what is to be done with an op; False passes it over for the next.
    """
    chosen: List[str] = []
    passed: List[str] = []
    for name in ranked:
        if len(chosen) == number:
            break
        extra = cost(name) if budget is not None else 0
        if budget is not None and extra > budget:
            passed.append(name)
            continue
        if not take(name):
            continue
        if budget is not None:
            budget -= extra
        chosen.append(name)
    return Pick(chosen, passed)


class Pick(NamedTuple):
    """Ops to expand, and better ones that were too expensive."""

    chosen: List[str]
    over_budget: List[str]


def importance(block: Block) -> Dict[str, float]:
    """Importance s_j of the added branches of a block."""
    return relative_gammas({name: branch.bn.weight for name, branch in block.branches.items()})


def relative_gammas(gammas: Mapping[str, Tensor]) -> Dict[str, float]:
    """Importance s_j of the added branches: mean |gamma| (Eq. 9) relative to that of the original.

    Args:
        gammas (Mapping[str, Tensor]): Weight of each branch's last batch norm, that of ``kxk`` among them.
    """
    means = {name: gamma.detach().abs().double().mean().item() for name, gamma in gammas.items()}
    original = max(means.pop('kxk'), 1e-12)
    return {name: mean / original for name, mean in means.items()}


def redundant(importances: Mapping[str, float], threshold: float, bound: Optional[float] = None,
              unbiased: bool = False) -> List[str]:
    """Branches to cut: below the mean, once the population deviation passes the threshold (Section 4.2).

    Args:
        importances (Mapping[str, float]): s_j of the added branches of a block.
        threshold (float): lambda.
        bound (float, optional): Cut only branches less important than this, as the authors' code does.
        unbiased (bool): The sample deviation, by n - 1, instead, as the authors' code has it. Defaults to False.

    Returns:
        list[str]: Never all of them.
    """
    values = np.array(list(importances.values()))
    if not np.isfinite(values).all() or len(values) < 2 or not values.std(ddof=int(unbiased)) > threshold:
        return []
    return [name for name, value in importances.items()
            if value < values.mean() and (bound is None or value < bound)]
