"""A block with statistics of the batch runs as one sum: same function, gradients, statistics; less is kept."""
import copy
from typing import Callable, List

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook

from mmdyrep.reparam import Block, gating, merging, summing
from mmdyrep.reparam.branches import OneByK
from tests.convolutions import convs, error, images_for, seeds

from .test_block import block_on
from .test_merging import WATCHED, full_block, hook, x_for

EXACT = 1e-11


def training_block(*args, **kwargs) -> Block:
    return full_block(*args, **kwargs).train()


def runs_summed(block: Block, x: Tensor) -> bool:
    twin, called = copy.deepcopy(block), []
    twin.branchwise = lambda x: called.append(x) or Block.branchwise(twin, x)
    twin(x.detach())
    return not called


def results(block: Block, run: Callable, x: Tensor, upstream: Tensor) -> List[Tensor]:
    """Output, gradients and buffers."""
    x = x.detach().requires_grad_()
    out = run(block, x)
    asked = [x, *block.parameters()]
    return [out, *torch.autograd.grad(out, asked, upstream), *block.buffers()]


def same(block: Block, x: Tensor) -> bool:
    """Whether a block does in its way what its branches do; compared with the largest of each kind."""
    upstream = torch.randn_like(copy.deepcopy(block)(x))
    twin = copy.deepcopy(block)
    got = results(block, Block.__call__, x, upstream)
    wanted = results(twin, branches_of, x, upstream)
    largest = max(value.abs().max().item() for value in wanted[1:])
    return all(a.dtype == b.dtype and ((a - b).abs().max() <= EXACT * max(largest, 1.0)) for a, b in zip(got, wanted))


def branches_of(block: Block, x: Tensor) -> Tensor:
    """The branches one by one, in nested blocks, too."""
    before = summing.run
    summing.run = lambda block, x: None
    try:
        return block(x)
    finally:
        summing.run = before


@given(convs(), seeds, st.sampled_from([1, 2, 3]), st.sampled_from([0.1, 0.4, None]))
def test_function_gradients_and_statistics_are_those_of_the_branches(conv, seed, depth, momentum):
    block = block_on(conv, seed, depth)
    for norm in block.modules():
        if isinstance(norm, _BatchNorm):
            norm.momentum = momentum
            norm.num_batches_tracked.fill_(3)
    x = images_for(block.geometry, seed, 3)
    assert not summing.why_branchwise(block) and runs_summed(block, x) and same(block, x)
    assert {int(norm.num_batches_tracked) for norm in block.modules() if isinstance(norm, _BatchNorm)} == {4}


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_first_and_second_derivatives_are_those_of_differences(groups):
    block = training_block(groups=groups)
    inputs = [x_for(block, 1), *block.parameters()]
    assert runs_summed(block, inputs[0])
    assert torch.autograd.gradcheck(lambda x, *_: block(x), inputs, fast_mode=True)
    small = training_block(nested=False, groups=groups)
    inputs = [x_for(small, 1), *small.parameters()]
    assert torch.autograd.gradgradcheck(lambda x, *_: small(x), inputs, fast_mode=True)


def test_backward_a_second_time_gives_the_same():
    block = training_block()
    x = x_for(block)
    out, inputs = block(x), [x, *block.parameters()]
    upstream = torch.randn_like(out)
    first = torch.autograd.grad(out, inputs, upstream, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(out, inputs, upstream)))


def test_kept_for_backward_are_the_input_and_the_maps_of_wide_kernels_once():
    block = training_block(8, nested=False)
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64, requires_grad=True)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*block.parameters(), *block.buffers()]}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    maps = [size for size in kept.values() if size > 1000]
    assert maps == [x.numel() * 8] * 5 and sum(kept.values()) - sum(maps) < 25 * 8 * 8


# ---------------------------------------------------------------------- when branches run

UNSUITABLE = {
    'norm in eval mode': lambda block: block.branches['1x1_avg'].bn1.eval(),
    'last norm in eval mode': lambda block: block.branches['residual'].bn.eval(),
    'norm over several processes': lambda block: setattr(
        block.branches['1x1'], 'bn', nn.SyncBatchNorm.convert_sync_batchnorm(block.branches['1x1'].bn)),
    'norm without statistics': lambda block: setattr(
        block.branches['1x1'], 'bn', nn.BatchNorm2d(4, track_running_stats=False).double()),
    'norm that is not affine': lambda block: setattr(
        block.branches['1x1'], 'bn', nn.BatchNorm2d(4, affine=False).double()),
    'branch of another kind': lambda block: setattr(
        block.branches['1xk'], '__class__', type('Own', (OneByK, ), {'forward': lambda self, x: self.bn(x)})),
    'search': lambda block: setattr(block, 'gate', gating.Gate()),
    'convolution with a bias': lambda block: setattr(
        block.branches['1xk'].conv, 'bias', nn.Parameter(torch.zeros(4, dtype=torch.float64))),
}


@pytest.mark.parametrize('what', [name for name in WATCHED if 'nested' not in name and 'deep' not in name])
def test_branches_run_where_somebody_would_notice_that_they_do_not(what):
    block = training_block(nested=False)
    x = x_for(block)
    assert runs_summed(block, x)
    if 'train mode' in what:
        block.eval()
    WATCHED[what](block)
    # a copy is on its own: what has been done to it may not be copied
    called = []
    block.branchwise = lambda x: called.append(x) or Block.branchwise(block, x)
    block(x)
    assert called


@pytest.mark.parametrize('what', UNSUITABLE)
def test_branches_run_where_a_norm_or_a_convolution_is_not_as_a_block_makes_it(what):
    block = training_block(nested=False)
    UNSUITABLE[what](block)
    assert summing.why_branchwise(block)
    called = []
    block.branchwise = lambda x: called.append(x) or x
    block(x_for(block))
    assert called and (what != 'branch of another kind' or merging.why_branchwise(block.eval()))


def test_hooks_see_their_input_and_what_they_return_counts():
    block = training_block()
    x, seen = x_for(block), []
    handle = block.branches['1x1'].register_forward_hook(lambda module, args, out: seen.append(args[0]) or out * 2)
    doubled = copy.deepcopy(block)(x)
    assert seen[0] is x
    handle.remove()
    twin = copy.deepcopy(block)
    more = twin.branches['1x1'](x) * block.scale.view(1, -1, 1, 1)
    assert error(doubled - block(x), more) < EXACT


def test_hooks_in_nested_blocks_and_on_them_are_called():
    block = training_block()
    seen = []
    hook(block.origin.conv)
    for module in (block.origin.conv, block.origin.conv.branches['1xk'].bn, block.branches['1x1_kxk'].conv):
        module.register_forward_hook(lambda module, args, out: seen.append(out))
    x = x_for(block)
    assert summing.run(block, x) is not None and len(seen) == 3


def test_hooks_for_all_modules_see_the_modules_within():
    block = training_block()
    seen = []
    handle = register_module_forward_hook(lambda module, args, out: seen.append(module))
    try:
        block(x_for(block))
    finally:
        handle.remove()
    assert {id(module) for module in block.modules() if not isinstance(module, nn.ModuleDict)} == set(map(id, seen))


@pytest.mark.parametrize('shape', [(0, 4, 5, 5), (1, 4, 1, 1)])
def test_one_value_per_channel_and_none_at_all(shape):
    block = training_block(nested=False)
    x = torch.randn(shape, dtype=torch.float64)
    assert not runs_summed(block, x) and torch.equal(block(x), branches_of(block, x))
    assert all(buffer.isfinite().all() for buffer in block.buffers())


def test_fixed_statistics_run_as_one_convolution_as_before():
    block = training_block()
    for norm in block.modules():
        if isinstance(norm, _BatchNorm):
            norm.eval()
    x = x_for(block)
    assert block(x).grad_fn.name() == '_ConvolutionBackward'
