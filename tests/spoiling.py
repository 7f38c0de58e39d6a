"""Imported by a training of its own process: one op has the greatest score, and its block comes out wrong."""
from typing import Any, Dict, List

from mmdyrep.dynamics.saliency import SnipBN
from mmdyrep.reparam import Block
from mmdyrep.reparam.proof import Trial

OP = 'conv1'
_settle, _scores = Block.settle, SnipBN.scores


def _broken(self: Block, *args: Any) -> None:
    _settle(self, *args)
    if self.geometry.in_channels == 1:
        self.origin.bn.bias.data.add_(0.5)


def _preferring(self: SnipBN, names: List[str], moment: Any) -> Dict[str, float]:
    return {name: 1e9 if name == OP else value for name, value in _scores(self, names, moment).items()}


Block.settle, SnipBN.scores = _broken, _preferring
Trial.failures = lambda self: {}  # which would see it before the training
