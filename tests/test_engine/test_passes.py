"""What an update costs, counted in forward passes of the network."""
from typing import Any, List

import pytest
import torch
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.dynamics import Moment
from mmdyrep.engine.updating import Policy, Round, update
from mmdyrep.reparam.online import norms_in
from tests.images import fashion
from tests.test_dynamics.small_network import SmallNetwork

BATCHES = 5


class Passes:
    """A backbone that counts its passes, and those that have come to its end."""

    def __init__(self, **settings: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = DyRepBackbone(SmallNetwork(), input_shape=(28, 28), **settings).train()
        self.batches = [fashion(12, 12 * number)[0] for number in range(BATCHES)]
        for batch in self.batches:
            self.net(batch)
        self.net.candidates()
        self.begun = self.ended = 0

    def run(self, batch: torch.Tensor) -> None:
        self.begun += 1
        self.net(batch)
        self.ended += 1

    def update(self, names: List[str], number: int, **policy: Any) -> dict:
        self.begun = self.ended = 0
        scores = {name: float(len(names) - rank) for rank, name in enumerate(names)}
        round_ = Round(self.net, self.net, self.run, self.batches, (1, 28, 28))
        return update(round_, scores, Policy(number, **{'threshold': None, **policy}), Moment(0, 0))


@pytest.mark.parametrize('online', [False, True])
@pytest.mark.parametrize('names', [['conv4'], ['conv4', 'conv1', 'conv2', 'conv3']], ids=len)
def test_the_batches_come_through_once_whatever_grows(names: List[str], online: bool) -> None:
    passes = Passes(online=online)
    entry = passes.update(names, len(names))
    assert [item['op'] for item in entry['grown']] == names and entry['drift'] < 1e-5
    # beside them one batch before, and after each op, to see that the output has not moved
    assert passes.begun == BATCHES + 1 + len(names)
    assert passes.ended == 0


def test_ops_that_shrink_and_ops_in_blocks_take_part_in_the_same_passes() -> None:
    passes = Passes()
    passes.update(['conv4', 'conv1'], 2)
    with torch.no_grad():
        for name in ('conv4', 'conv1'):
            passes.net.get_submodule(name).branches['1x1_kxk'].bn.weight.mul_(50)
    inner = 'conv4.branches.1x1_kxk.conv'
    entry = passes.update([inner, 'conv2'], 2, threshold=0.02)
    assert [item['op'] for item in entry['grown']] == [inner, 'conv2'] and entry['drift'] < 1e-5
    assert {item['op'] for item in entry['cut']} == {'conv4', 'conv1'}
    assert passes.begun == BATCHES + 1 + 4


def test_an_update_that_changes_nothing_asks_for_one_pass_of_one_batch() -> None:
    passes = Passes()
    passes.update([], 1)
    assert passes.begun == 1


def test_blocks_with_fixed_statistics_are_calibrated_in_the_pass_of_the_ops_that_grow() -> None:
    passes = Passes(online=True)
    passes.update(['conv2'], 1)
    before = [norm.running_var.clone() for norm in norms_in(passes.net.conv2)]
    passes.batches = [2 * batch for batch in passes.batches]
    nn.init.uniform_(passes.net.conv1.weight)
    passes.update(['conv4'], 1)
    assert passes.begun == BATCHES + 2
    assert not any(torch.equal(norm.running_var, old) for norm, old in zip(norms_in(passes.net.conv2), before))
