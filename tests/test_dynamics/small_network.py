"""A small classifier of Fashion-MNIST: three convolutions with norms, one with a bias instead."""
from typing import List

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdyrep.dynamics import Op


class SmallNetwork(nn.Sequential):
    """Maps images (N, 1, 28, 28) to logits (N, 10)."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__()
            for name, module in dict(
                    conv1=nn.Conv2d(1, 6, 3, 2, 1, bias=False), bn1=nn.BatchNorm2d(6), relu1=nn.ReLU(),
                    conv2=nn.Conv2d(6, 8, 3, padding=1, bias=False), bn2=nn.BatchNorm2d(8), relu2=nn.ReLU(),
                    drop=nn.Dropout(dropout),
                    conv3=nn.Conv2d(8, 8, 3, 2, 1), relu3=nn.ReLU(),
                    conv4=nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), bn4=nn.BatchNorm2d(8),
                    pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(8, 10)).items():
                self.add_module(name, module)
            for norm in (self.bn1, self.bn2, self.bn4):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias)

    behind = {'conv1': 'bn1', 'conv2': 'bn2', 'conv3': None, 'conv4': 'bn4'}

    def ops(self) -> List[Op]:
        return [Op(name, self.get_submodule(name), self.get_submodule(bn) if bn else None)
                for name, bn in self.behind.items()]

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self(x), labels)
