"""What DyRep's updates leave of optimizer and schedulers, in real trainings."""
import copy
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from mmdyrep.engine.optimizer import rebuild_groups
from tests.dyrep_runs import AroundUpdates, Record, dyrep_config, trained, updates
from tests.runs import needs_images, small_config

pytestmark = needs_images

OP = 'layer1.0.conv1'
# OP grows first, what is nested in it next
ONE_OP = dict(exclude=('conv1', 'layer1.0.conv2', 'layer1.1', 'layer2'))
PARAMWISE = dict(norm_decay_mult=0., custom_keys={OP: dict(lr_mult=0.1, decay_mult=2.)})
OPTIMIZERS = {
    'SGD': dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4),
    'AdamW': dict(type='AdamW', lr=0.01, weight_decay=0.05),
}


def by_parameter(groups: List[Dict[str, Any]]) -> Dict[int, Dict[str, Any]]:
    """Group of each parameter, in the order of the groups."""
    return {id(parameter): group for group in groups for parameter in group['params']}


def optimizer_of(runner: Runner) -> torch.optim.Optimizer:
    return runner.optim_wrapper.optimizer


class Keeps:
    """State of each Parameter before an update, compared with the one after it."""

    def __init__(self) -> None:
        self.counts: List[Tuple[int, int, int]] = []  # kept, new, gone
        self.moved: List[Tuple[str, str]] = []

    def before(self, runner: Runner) -> None:
        self.names = {parameter: name for name, parameter in runner.model.named_parameters()}
        self.state = copy.copy(optimizer_of(runner).state)
        self.copies = {parameter: {key: copy.deepcopy(value) for key, value in state.items()}
                       for parameter, state in self.state.items()}

    def after(self, runner: Runner) -> None:
        now = {parameter: name for name, parameter in runner.model.named_parameters()}
        state = optimizer_of(runner).state
        kept = [parameter for parameter in now if parameter in self.names]
        assert len(self.copies) == len(self.names)
        for parameter in kept:
            assert list(state[parameter]) == list(self.copies[parameter])
            for key, value in self.copies[parameter].items():
                same = torch.equal(value, state[parameter][key]) if torch.is_tensor(value) else \
                    value == state[parameter][key]
                assert same, (now[parameter], key)
        assert set(state) == set(kept)
        self.counts.append((len(kept), len(now) - len(kept), len(self.names) - len(kept)))
        self.moved += [(self.names[parameter], now[parameter]) for parameter in kept
                       if self.names[parameter] != now[parameter]]


@pytest.mark.parametrize('kind', sorted(OPTIMIZERS))
def test_state_of_survivors_is_kept_bit_for_bit_and_new_parameters_have_none(tmp_path: Path, kind: str) -> None:
    keeps = Keeps()
    cfg = dyrep_config(dict(metric='snip', dep=dict(threshold=1e-6)), backbone=ONE_OP, images=128)
    cfg.optim_wrapper.optimizer = OPTIMIZERS[kind]
    if kind == 'AdamW':
        cfg.param_scheduler = cfg.param_scheduler[:2]
    trained(cfg, tmp_path, [AroundUpdates(keeps.before, keeps.after)])
    first = updates(tmp_path)[0]
    assert [item['op'] for item in first['grown']] == [OP]
    # the convolution's Parameter moves into the block
    assert keeps.moved[0] == (f'backbone.{OP}.weight', f'backbone.{OP}.branches.kxk.conv.weight')
    assert keeps.counts[0][1] > 10 and keeps.counts[0][2] == 0
    assert any(gone for _, _, gone in keeps.counts) and any(entry['cut'] for entry in updates(tmp_path))


@pytest.mark.parametrize('paramwise', [None, PARAMWISE], ids=['one group', 'paramwise'])
def test_groups_are_those_of_a_fresh_construction(tmp_path: Path, paramwise: Any) -> None:
    cfg = dyrep_config(dict(metric='snip', dep=dict(threshold=1e-6)), backbone=ONE_OP, images=128)
    if paramwise:
        cfg.optim_wrapper.paramwise_cfg = paramwise
    seen = []

    def compare(runner: Runner) -> None:
        fresh = build_optim_wrapper(runner.model, copy.deepcopy(cfg.optim_wrapper)).optimizer.param_groups
        groups = by_parameter(optimizer_of(runner).param_groups)
        expected = by_parameter(fresh)
        assert set(groups) == set(expected)
        for parameter, group in groups.items():
            wanted = expected[parameter]
            assert group['initial_lr'] == wanted['lr'] and group['weight_decay'] == wanted['weight_decay']
            assert group['initial_momentum'] == wanted['momentum']
        if not paramwise:
            assert list(groups) == list(expected)
        seen.append({(group['initial_lr'], group['weight_decay']) for group in groups.values()})

    trained(cfg, tmp_path, [AroundUpdates(lambda runner: None, compare)])
    assert len(seen) == 4
    # norms in the block: a tenth of the rate, no decay... as custom_keys says first
    assert len(seen[-1]) == (3 if paramwise else 1)


SCHEDULES: Dict[str, Any] = {
    'linear and cosine': None,
    'steps': [dict(type='MultiStepLR', by_epoch=True, milestones=[1, 3], gamma=0.1)],
    'one cycle': [dict(type='OneCycleLR', by_epoch=False, eta_max=0.1, total_steps=16)],
    'plateau': [dict(type='ReduceOnPlateauLR', by_epoch=True, monitor='accuracy/top1', rule='greater', patience=0,
                     threshold=1e9, threshold_rule='abs', factor=0.3)],
}


def values(runner: Runner) -> List[Tuple[bool, float, float]]:
    """(whether of OP, rate, momentum) of each parameter."""
    of_op = {id(parameter) for name, parameter in runner.model.named_parameters() if name.startswith(f'backbone.{OP}')}
    return [(id(parameter) in of_op, group['lr'], group['momentum'])
            for group in optimizer_of(runner).param_groups for parameter in group['params']]


@pytest.mark.parametrize('schedule', list(SCHEDULES))
@pytest.mark.parametrize('paramwise', [False, True], ids=['one group', 'paramwise'])
def test_rates_go_on_as_in_the_plain_run(tmp_path: Path, schedule: str, paramwise: bool) -> None:
    records = []
    for name in ('plain', 'dyrep'):
        cfg = dyrep_config(dict(metric='snip', dep=None), backbone=ONE_OP, images=128)
        if name == 'plain':
            cfg = small_config(images=128)
        cfg.param_scheduler = SCHEDULES[schedule] or cfg.param_scheduler
        if paramwise:
            cfg.optim_wrapper.paramwise_cfg = PARAMWISE
        records.append(Record(values))
        runner = trained(cfg, tmp_path / name, [records[-1]], validate=schedule == 'plateau')
        for scheduler in runner.param_schedulers:
            if hasattr(scheduler, 'base_values'):
                assert scheduler.base_values == [group[f'initial_{scheduler.param_name}']
                                                 for group in scheduler.optimizer.param_groups]
    plain, grown = (record.seen for record in records)
    assert len(plain) == len(grown) == 16
    assert len({now[0][1:] for now in plain}) > 2 or schedule != 'linear and cosine'
    for expected, now in zip(plain, grown):
        assert len(now) >= len(expected)
        table = {of_op: (lr, momentum) for of_op, lr, momentum in expected}
        for of_op, lr, momentum in now:
            assert (lr, momentum) == pytest.approx(table[of_op], rel=1e-12)
    assert len({now[0][1] for now in plain}) > 1
    assert len(grown[-1]) > len(plain[-1])


def test_several_groups_without_a_config_are_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=.1, weight_decay=1e-4),
                                              paramwise_cfg=dict(bias_decay_mult=0)))
    groups = [dict(group) for group in wrapper.optimizer.param_groups]
    with pytest.raises(ValueError, match='has 4 parameter groups and the runner knows no config'):
        rebuild_groups(wrapper, model, None)
    assert [dict(group) for group in wrapper.optimizer.param_groups] == groups
