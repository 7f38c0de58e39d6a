"""Saliency of ops (Section 4.1, Appendix A.3), accumulated on the device and averaged over an interval."""
import hashlib
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# What a score is of: an op with all branches that it lacks, or one branch of an op.
Key = Union[str, Tuple[str, str]]


class Op(NamedTuple):
    """A convolution that can be expanded, and the batch norm right behind it, if there is one."""

    name: str
    conv: nn.Conv2d
    bn: Optional[_BatchNorm]


@dataclass
class Moment:
    """The update that scores are asked for: what makes random draws reproducible."""

    seed: int
    number: int

    def generator(self, name: str) -> torch.Generator:
        """Generator of an op in this update: equal on all ranks and after a resume."""
        digest = hashlib.sha256(f'{self.seed}/{self.number}/{name}'.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], 'big'))


class Saliency:
    """Base of the metrics: a score for each op in each iteration, their mean as the result.

    A metric that needs more than the gradients of the steps sets :attr:`batches` and overrides :meth:`measure`, which
    is called right before :meth:`scores`. One that scores single branches gives their scores by (op, branch).
    """

    # kept batches that `measure` needs at least
    batches = 0

    def __init__(self) -> None:
        self.sums: Dict[str, Tensor] = {}
        self.counts: Dict[str, int] = {}
        # what the history shall tell of the last scores
        self.notes: Dict[str, Any] = {}

    def score(self, op: Op) -> Optional[Tensor]:
        """Score of one op in one iteration, a tensor without dimensions; None if it has no gradient."""
        raise NotImplementedError

    @torch.no_grad()
    def observe(self, ops: Iterable[Op], scale: float = 1.0) -> None:
        """Add one iteration, after backward and before the optimizer's step; nothing leaves the device.

        Args:
            ops (Iterable[Op]): Candidates.
            scale (float): What the gradients are still multiplied by (a loss scale).
        """
        for op in ops:
            score = self.score(op)
            if score is not None:
                self.add(op.name, score.detach().double() / scale)

    def add(self, name: str, score: Tensor) -> None:
        """Count a score of an op in."""
        self.sums[name] = self.sums[name] + score if name in self.sums else score
        self.counts[name] = self.counts.get(name, 0) + 1

    def measure(self, model: nn.Module, loss: Callable[[Any], Tensor], batches: Sequence[Any],
                ops: Sequence[Op]) -> None:
        """Look at the batches kept of the interval; most metrics have no need to.

        Args:
            model (nn.Module): The whole model, in train mode; left as it is.
            loss (callable): The model's loss on a batch, in the precision of its parameters.
            batches (Sequence): This rank's.
            ops (Sequence[Op]): Candidates.
        """

    def scores(self, names: List[str], moment: Moment) -> Dict[Key, float]:
        """Mean scores since the last reset, over all ranks in one communication; NaN where there is none.

        Args:
            names (list[str]): Ops to score, the same on all ranks.
            moment (Moment): The update this is for.
        """
        if not names:
            return {}
        device = next((value.device for value in self.sums.values()), torch.device('cpu'))
        zero = torch.zeros((), dtype=torch.float64, device=device)
        table = torch.stack([
            torch.stack([self.sums.get(name, zero) for name in names]),
            torch.tensor([self.counts.get(name, 0) for name in names], dtype=torch.float64, device=device)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(table)
        totals, counts = table.tolist()
        return {name: total / count if count else math.nan for name, total, count in zip(names, totals, counts)}

    def reset(self) -> None:
        """Start a new interval."""
        self.sums.clear()
        self.counts.clear()

    def state_dict(self) -> Dict[str, Any]:
        """Sums and counts of a half-done interval."""
        return {'metric': type(self).__name__, 'sums': {name: value.item() for name, value in self.sums.items()},
                'counts': dict(self.counts)}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on in the interval that :meth:`state_dict` was taken in; scores of another metric are left out."""
        if state.get('metric', type(self).__name__) != type(self).__name__:
            return
        self.sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state['sums'].items()}
        self.counts = dict(state['counts'])

    def to(self, device: torch.device) -> None:
        """Move the sums to where the gradients are."""
        self.sums = {name: value.to(device) for name, value in self.sums.items()}


class Random(Saliency):
    """A normal random number for each op and update (Eq. 11)."""

    def score(self, op: Op) -> Optional[Tensor]:
        return None

    def scores(self, names: List[str], moment: Moment) -> Dict[Key, float]:
        return {name: torch.randn((), generator=moment.generator(name)).item() for name in names}


class GradNorm(Saliency):
    """Euclidean norm of the gradient (Eq. 12)."""

    def score(self, op: Op) -> Optional[Tensor]:
        return None if op.conv.weight.grad is None else op.conv.weight.grad.norm()


class Snip(Saliency):
    """Sum of |gradient * weight| (Eq. 13)."""

    def score(self, op: Op) -> Optional[Tensor]:
        weight = op.conv.weight
        return None if weight.grad is None else (weight.grad * weight).abs().sum()


class SynFlow(Saliency):
    """Sum of gradient * weight, signed (Eq. 4).

    In front of a batch norm in train mode the exact value is zero but for the norm's eps: such a
    convolution is invariant to the scale of its weight. What is ranked is that residue and rounding.
    """

    def score(self, op: Op) -> Optional[Tensor]:
        weight = op.conv.weight
        return None if weight.grad is None else (weight.grad * weight).sum()


class SnipBN(Saliency):
    """Sum over channels of |gamma * gradient of gamma| of the batch norm right behind the op.

    Takes the OP-BN pair as the operation; not degenerate as Eq. 4 is, and of cost O(C).
    """

    def score(self, op: Op) -> Optional[Tensor]:
        if op.bn is None or op.bn.weight is None or op.bn.weight.grad is None:
            return None
        return (op.bn.weight.grad * op.bn.weight).abs().sum()
