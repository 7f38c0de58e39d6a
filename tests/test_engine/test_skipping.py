"""Norms that batches skip: averaged over those that reach them, else the op is passed over."""
from pathlib import Path
from typing import Any, Sequence

import pytest
import torch
from torch import Tensor, nn

from mmdyrep.dynamics import Calibration, NotReached
from tests.steps import dyrep_hook, messages
from tests.strange import Model, runner_for


class Depth(nn.Module):
    """Stochastic depth by batches: the second layer runs where ``runs`` says so, in train mode.

    Args:
        runs (Sequence[bool]): By forward pass in train mode, again from the start.
    """

    def __init__(self, runs: Sequence[bool]) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.runs, self.number = runs, 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        if self.training:
            self.number += 1
            if not self.runs[(self.number - 1) % len(self.runs)]:
                return x
        return x + self.norm(self.conv(x)).relu()


def test_statistics_are_those_of_the_batches_that_come_through() -> None:
    net, batches = Depth([True, False, True]).double().train(), [torch.randn(4, 3, 8, 8).double() for _ in range(3)]
    measured, stem = Calibration(net, net, batches, net)([net.norm, net.stem_norm])
    inputs = [net.conv(net.stem_norm(net.stem(x)).relu()) for x in batches]
    mean = sum(inputs[i].mean((0, 2, 3)) for i in (0, 2)) / 2
    assert torch.allclose(measured.mean, mean, atol=1e-12)
    assert torch.allclose(stem.mean, sum(net.stem(x).mean((0, 2, 3)) for x in batches) / 3, atol=1e-12)
    net.number = 0
    with pytest.raises(NotReached, match='1 of 2 batch norms to calibrate were not reached'):
        Calibration(net, net, batches[1:2], net)([net.norm, nn.BatchNorm2d(4)])


@pytest.mark.parametrize('runs', [[True, False], [True, True, True, False, False, False]], ids=['some', 'none'])
def test_the_training_goes_on(tmp_path: Path, caplog: Any, runs: Sequence[bool]) -> None:
    # the second: three iterations with the layer in the first epoch, three without it in the second
    model = Model(Depth(runs), max_depth=1)
    runner = runner_for(model, tmp_path, hook=dict(metric='random', num_grow=2, dep=dict(threshold=1e-9)), epochs=2)
    lines = messages(runner, caplog)
    first = dyrep_hook(runner).history.updates[0]
    missed = [name for update in dyrep_hook(runner).history.updates for name, _ in update['passed_over']]
    if runs == [True, False]:
        assert {item['op'] for item in first['grown']} == {'stem', 'conv'} and not missed
    else:
        # kept batches of the first epoch come when the layer is skipped: in the first update already
        assert [item['op'] for item in first['grown']] == ['stem'] and first['passed_over'][0][0] == 'conv'
        assert any('passed over conv: ' in line and 'not reached' in line for line in lines)
    assert all(update['drift'] < 1e-5 for update in dyrep_hook(runner).history.updates)
    assert 'stem' in model.backbone.structure['ops']
