"""Statistics of batch norms: measured, written, carried on."""
from typing import Callable, List, NamedTuple, Sequence, cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from . import kernels


class Statistics(NamedTuple):
    """Mean and variance of a map over batch and space, both of shape (C,)."""

    mean: Tensor
    var: Tensor


def running(bn: _BatchNorm) -> Statistics:
    """Those that a norm keeps, which all norms in blocks and behind ops do; the very buffers."""
    return Statistics(cast(Tensor, bn.running_mean), cast(Tensor, bn.running_var))


def seen_by(bn: _BatchNorm) -> Tensor:
    """How many batches the statistics of a norm are of; the very buffer."""
    return cast(Tensor, bn.num_batches_tracked)


# Measures the inputs of batch norms on training batches, in train mode; without it running statistics serve.
Measure = Callable[[Sequence[_BatchNorm]], List[Statistics]]


def restate(bn: _BatchNorm, statistics: Statistics) -> None:
    """Give a batch norm other running statistics; gamma and beta change so that its eval output does not."""
    mean, var = (value.double() for value in statistics)
    factor = kernels.gain(bn).detach()
    beta = bn.bias.detach().double() + (mean - running(bn).mean.double()) * factor
    store(bn, mean, var, factor * (var + bn.eps).sqrt(), beta)


@torch.no_grad()
def store(bn: _BatchNorm, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor) -> None:
    """Write all that a norm computes with in eval mode."""
    own = running(bn)
    own.mean.copy_(mean)
    own.var.copy_(var)
    bn.weight.copy_(gamma)
    bn.bias.copy_(beta)


@torch.no_grad()
def go_on(norms: Sequence[_BatchNorm], like: _BatchNorm) -> None:
    """Give norms the mode of another one and its count of batches, which cumulative averages (momentum=None) need."""
    for norm in norms:
        norm.train(like.training)
        seen_by(norm).copy_(seen_by(like))
