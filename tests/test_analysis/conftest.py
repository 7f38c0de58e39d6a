import pytest
import torch
from torch import nn

from mmdyrep import DyRepBackbone


class Net(nn.Module):
    """A 7x7 stem, a 3x3 and a depthwise op."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 4, 7, padding=3, bias=False), nn.BatchNorm2d(4)
        self.body, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.deep, self.bn3 = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn3(self.deep(self.bn2(self.body(self.bn1(self.stem(x))))))


@pytest.fixture
def net():
    """Net with two blocks and one nested in the first; the gammas of the stem are known."""
    net = DyRepBackbone(Net())
    net.expand('stem', ['1x1', '1x1_kxk', '1xk'])
    net.expand('stem.branches.1x1_kxk.conv', ['1x1_avg'])
    net.expand('deep', ['1x1_avg', 'residual'])
    gammas = dict(zip(['kxk', '1x1', '1x1_kxk', '1xk'], [-2.0, 1.0, 0.5, -0.1]))
    for name, gamma in gammas.items():
        nn.init.constant_(net.stem.branches[name].bn.weight, gamma)
    return net


@pytest.fixture
def checkpoint(net, tmp_path):
    """As of a run: keys of a whole model, and a history with a branch cut and one op still waiting."""
    update = {'epoch': 3, 'iter': 30, 'scores': [['body', 2.0], ['stem.branches.kxk.conv', 1.0]], 'unscored': [],
              'grown': [], 'cut': [{'op': 'deep', 'branches': ['1x1']}]}
    path = tmp_path / 'epoch_3.pth'
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in net.state_dict().items()},
                'dyrep': {'history': {'updates': [update]}}}, path)
    return path
