"""Several metrics, a vote for each (the last column of Table 10)."""
import math
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn

from .grasp import Grasp
from .policy import rank
from .saliency import GradNorm, Key, Moment, Op, Saliency, Snip, SynFlow


class Vote(Saliency):
    """Each metric votes for its first choice; most votes win, equal ones by the mean of the ranks.

    The score of an op is the number of its votes, and a fraction that is the greater the smaller its mean rank.

    Args:
        metrics (Mapping[str, Saliency], optional): The metrics that vote. Defaults to the paper's: grad_norm, snip,
            grasp and synflow.
    """

    def __init__(self, metrics: Optional[Mapping[str, Saliency]] = None) -> None:
        super().__init__()
        self.metrics = dict(metrics or dict(grad_norm=GradNorm(), snip=Snip(), grasp=Grasp(), synflow=SynFlow()))
        self.batches = max((metric.batches for metric in self.metrics.values()), default=0)

    def observe(self, ops: Iterable[Op], scale: float = 1.0) -> None:
        ops = list(ops)
        for metric in self.metrics.values():
            metric.observe(ops, scale)

    def measure(self, model: nn.Module, loss: Callable[[Any], Tensor], batches: Sequence[Any],
                ops: Sequence[Op]) -> None:
        for metric in self.metrics.values():
            metric.measure(model, loss, batches, ops)

    def scores(self, names: List[str], moment: Moment) -> Dict[Key, float]:
        """Votes and a fraction by mean rank; NaN for an op that no metric has a score of."""
        ranked = {metric: rank(saliency.scores(names, moment)).ranked for metric, saliency in self.metrics.items()}
        self.notes = {'votes': {metric: order[0] for metric, order in ranked.items() if order}}
        votes = list(self.notes['votes'].values())
        result: Dict[Key, float] = {}
        for name in names:
            # an op that a metric has no score of comes last there
            places = [order.index(name) + 1 if name in order else len(names) for order in ranked.values()]
            mean = sum(places) / len(places) / (len(names) + 1)
            scored = any(name in order for order in ranked.values())
            result[name] = votes.count(name) + 1 - mean if scored else math.nan
        return result

    def reset(self) -> None:
        for metric in self.metrics.values():
            metric.reset()

    def state_dict(self) -> Dict[str, Any]:
        """Those of the metrics."""
        return {**super().state_dict(), 'metrics': {
            name: metric.state_dict() for name, metric in self.metrics.items()}}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        for name, metric in self.metrics.items():
            if name in state.get('metrics', {}):
                metric.load_state_dict(state['metrics'][name])

    def to(self, device: torch.device) -> None:
        for metric in self.metrics.values():
            metric.to(device)
