"""Rep and Dep right after they happened: how far logits move in train mode (docs/exactness.md)."""
import statistics
from typing import Any

import pytest
import torch

from tests import exactness
from tests.exactness import NETWORKS, Trained, deps, frozen, online, reps, short_training
from tests.images import FOLDER

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER.exists(), reason='no Fashion-MNIST')]


@pytest.fixture(scope='module', params=list(NETWORKS))
def network(request: Any) -> Trained:
    cfg, channels = NETWORKS[request.param]
    return short_training(cfg, channels, 60)


def some(network: Trained) -> list:
    return network.model.backbone.candidates()[::4]


def test_calibrated_rep_hardly_moves_the_logits_in_train_mode(network: Trained) -> None:
    train, evaluate = zip(*reps(network, 10, some(network)))
    assert max(train) < 2e-3 and max(evaluate) < 1e-5
    uncalibrated, evaluate = zip(*reps(network, 0, some(network)))
    assert max(evaluate) < 1e-5
    assert statistics.median(uncalibrated) > 3 * statistics.median(train)


def test_calibrated_dep_hardly_moves_the_logits_in_train_mode(network: Trained) -> None:
    train, evaluate = zip(*deps(network, 10, some(network)[:3], number=10))
    assert max(train) < 2e-3 and max(evaluate) < 1e-5


def test_with_norm_eval_both_are_exact_in_train_mode(network: Trained) -> None:
    fixed = frozen(network)
    assert torch.equal(*(exactness.logits(fixed.model, fixed.size, training) for training in (True, False)))
    for distances in (reps(fixed, 10, some(network)), deps(fixed, 10, some(network)[:3], number=10)):
        train, evaluate = zip(*distances)
        assert max(train) < 1e-5 and max(evaluate) < 1e-5


def test_online_both_are_exact_in_train_mode_too(network: Trained) -> None:
    with_online = online(network)
    # the norms behind are in train mode: what is exact are the blocks
    assert not torch.equal(*(exactness.logits(with_online.model, with_online.size, mode) for mode in (True, False)))
    for distances in (reps(with_online, 10, some(network)[:2]), deps(with_online, 10, some(network)[:1], number=10)):
        train, evaluate = zip(*distances)
        assert max(train) < 1e-5 and max(evaluate) < 1e-5
