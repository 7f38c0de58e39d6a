"""Whatever a training of the libraries saves can be read without running code."""
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from mmdyrep.fileio import UnsafeCheckpoint, read_checkpoint
from tests.runs import differences

ARGUMENTS = dict(MultiStep=dict(milestones=[2, 2, 3]), Step=dict(step_size=2), Exponential=dict(gamma=0.9),
                 CosineAnnealing=dict(T_max=5), Constant=dict(factor=0.5), OneCycle=dict(eta_max=0.1, total_steps=9),
                 CosineRestart=dict(periods=[2, 3], restart_weights=[1, 1], eta_min=0),
                 ReduceOnPlateau=dict(monitor='loss'), Linear={}, Poly={})
# those of mmengine alone: other tests bring in those of the libraries
KINDS = sorted(name for name, kind in PARAM_SCHEDULERS.module_dict.items() if kind.__module__.startswith('mmengine.'))


@pytest.mark.parametrize('kind', KINDS)
def test_state_of_every_schedule(kind: str, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    arguments = dict(next(value for name, value in ARGUMENTS.items() if kind.startswith(name)))
    if kind.endswith('ParamScheduler'):
        arguments['param_name'] = 'lr'
    state = PARAM_SCHEDULERS.get(kind)(optimizer, **arguments).state_dict()
    weights = {'weight': torch.zeros(1)}
    torch.save({'state_dict': weights, 'param_schedulers': [state]}, tmp_path / 'a.pth')
    found = read_checkpoint(tmp_path / 'a.pth')
    assert differences(found, {'state_dict': weights, 'param_schedulers': [state]}) == []


def test_arrays_numbers_and_sets_in_what_a_data_set_tells(tmp_path: Path) -> None:
    meta = dict(classes={'a', 'b'}, palette=np.arange(6, dtype=np.uint8).reshape(2, 3), score=np.float32(0.5))
    torch.save({'state_dict': {'weight': torch.zeros(1)}, 'meta': meta}, tmp_path / 'a.pth')
    found = read_checkpoint(tmp_path / 'a.pth')['meta']
    assert found['classes'] == meta['classes'] and found['score'] == 0.5
    assert (found['palette'] == meta['palette']).all()


class Reaches:
    """Asks for an attribute of a class that is allowed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return getattr, (OneCycleParamScheduler, self.name)


@pytest.mark.parametrize('name', ['__init__', 'load_state_dict', '__globals__'])
def test_nothing_else_of_an_allowed_class_is_reached(name: str, tmp_path: Path) -> None:
    torch.save({'state_dict': {'weight': torch.zeros(1)}, 'x': Reaches(name)}, tmp_path / 'a.pth')
    with pytest.raises(UnsafeCheckpoint, match='getattr'):
        read_checkpoint(tmp_path / 'a.pth')
