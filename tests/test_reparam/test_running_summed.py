"""A block with statistics of the batch as one sum, in all that PyTorch does with modules."""
import copy
import glob
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmdyrep.reparam import Block, fitting, summing, terms
from mmdyrep.reparam.branches import BRANCHES
from tests.convolutions import convs, error, images_for, scatter, seeds

from .test_block import block_on, make_norm
from .test_merging import x_for
from .test_summing import EXACT, branches_of, results, runs_summed, same, training_block


def test_frozen_parameters_get_no_gradient_and_the_input_does():
    block = training_block()
    for name in ('1x1', 'residual'):
        block.branches[name].requires_grad_(False)
    block.branches['1x1_kxk'].conv1.weight.requires_grad_(False)
    x = x_for(block)
    out, twin = block(x), copy.deepcopy(block)
    wanted = branches_of(twin, x)
    upstream = torch.randn_like(out)
    own, theirs = ([x] + [parameter for parameter in one.parameters() if parameter.requires_grad]
                   for one in (block, twin))
    assert len(own) < len(list(block.parameters()))
    for a, b in zip(torch.autograd.grad(out, own, upstream), torch.autograd.grad(wanted, theirs, upstream)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    block.requires_grad_(False)
    assert torch.autograd.grad(block(x), x, upstream)[0].isfinite().all()
    with torch.no_grad():
        assert error(block(x), branches_of(block, x)) < EXACT


def test_a_first_layer_needs_no_gradient_of_its_input():
    block = training_block()
    x = x_for(block).detach()
    assert same(block, x)
    got, wanted = block(x), branches_of(block, x)
    upstream = torch.randn_like(got)
    for a, b in zip(*(torch.autograd.grad(out, list(block.parameters()), upstream) for out in (got, wanted))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradients_of_other_strides():
    block = training_block(nested=False)
    x = x_for(block)
    for upstream in (torch.ones((), dtype=torch.float64).expand(block(x).shape),
                     torch.randn_like(block(x)).transpose(2, 3).contiguous().transpose(2, 3)):
        for a, b in zip(*(torch.autograd.grad(run(block, x), [x, *block.parameters()], upstream)
                          for run in (Block.__call__, branches_of))):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [6, 12])
def test_what_follows_may_write_into_the_output(layout, size):
    block = training_block().float()
    x = torch.randn(2, block.geometry.in_channels, size, size).contiguous(memory_format=layout).requires_grad_()
    assert runs_summed(block, x)
    twin = copy.deepcopy(block)
    out, wanted = torch.relu_(block(x)), torch.relu(branches_of(twin, x))
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(out) * (wanted > 1e-3)
    for a, b in zip(torch.autograd.grad(out, [x, *block.parameters()], upstream),
                    torch.autograd.grad(wanted, [x, *twin.parameters()], upstream)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


STRIDED = """
import torch
from mmdyrep import DyRepBackbone
torch.set_num_threads(1)
for channels in (3, 12):
    conv = torch.nn.Conv2d(channels, 12, 3, 2, 1, bias=False)
    net = DyRepBackbone(torch.nn.Sequential(conv, torch.nn.BatchNorm2d(12)))
    net.expand('0')
    for batch in (1, 2, 4) * 3:
        net(torch.randn(batch, channels, 64, 64, requires_grad=True)).square().mean().backward()
print('done')
"""


def test_memory_is_whole_behind_strided_blocks():
    # PyTorch 2.1 writes where it should not in the gradients of 1x1 convolutions with a stride and channels last
    watch = glob.glob('/lib/*/libc_malloc_debug.so.0')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', STRIDED], capture_output=True, text=True,
                          env={**os.environ, 'MALLOC_CHECK_': '3', 'OMP_NUM_THREADS': '1',
                               **({'LD_PRELOAD': watch[0]} if watch else {})})
    assert done.returncode == 0 and done.stdout == 'done\n', done.stderr


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing(reentrant):
    block = training_block()
    x, twin = x_for(block), copy.deepcopy(block)
    checkpoint(block, x, use_reentrant=reentrant).square().sum().backward()
    checkpoint(partial(branches_of, twin), x, use_reentrant=reentrant).square().sum().backward()
    for a, b in zip([*block.parameters()], [*twin.parameters()]):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)
    assert all(torch.allclose(a, b, 1e-12, 1e-12) for a, b in zip(block.buffers(), twin.buffers()))


def test_functional_call_uses_and_changes_the_numbers_given():
    block, other = training_block(), scatter(training_block(), 9)
    x, twin = x_for(block), copy.deepcopy(other)
    before = [buffer.clone() for buffer in block.buffers()]
    table = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    out = torch.func.functional_call(block, table, (x, ))
    assert error(out, branches_of(twin, x)) < EXACT
    assert all(torch.allclose(a, b, 1e-12, 1e-12) for a, b in zip(other.buffers(), twin.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(block.buffers(), before))


def test_function_transforms():
    block = training_block(nested=False)
    x, twin = x_for(block).detach(), copy.deepcopy(block)
    def loss(table, buffers):
        return torch.func.functional_call(block, {**table, **buffers}, (x, )).square().sum()

    by = torch.func.grad(loss)(dict(block.named_parameters()), dict(block.named_buffers()))
    wanted = torch.autograd.grad(branches_of(twin, x).square().sum(), list(twin.parameters()))
    for ours, theirs in zip(by.values(), wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('low, kind', [(None, torch.float32), (torch.bfloat16, torch.float32),
                                       (torch.bfloat16, torch.bfloat16)])
def test_single_precision_and_autocast(low, kind):
    """At least as near to double precision as the branches are, in the same types."""
    block = training_block(8).float()
    x = (torch.randn(4, 8, 9, 9) + 3).to(kind)
    with torch.autocast('cpu', torch.bfloat16, enabled=low is not None):
        assert runs_summed(block, x)
    upstream = torch.randn(4, 8, 9, 9)
    exact = results(copy.deepcopy(block).double(), branches_of, x.double(), upstream.double())
    found = []
    for run in (Block.__call__, branches_of):
        with torch.autocast('cpu', low or torch.bfloat16, enabled=low is not None):
            found.append(results(copy.deepcopy(block), run, x, upstream))
    assert [one.dtype for one in found[0]] == [one.dtype for one in found[1]]
    apart = [sum((a.double() - b.double()).abs().max().item() for a, b in zip(one, exact)) for one in found]
    assert 0 < apart[0] < 1.5 * apart[1]


def test_half_precision_without_autocast_runs_branch_by_branch():
    block = training_block(8).bfloat16()
    x = x_for(block).detach().bfloat16()
    assert not runs_summed(block, x) and block(x).dtype == torch.bfloat16


def test_channels_last_stays_channels_last():
    block = training_block(8).float().to(memory_format=torch.channels_last)
    x = x_for(block).detach().float().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert runs_summed(block, x)
    out, wanted = block(x), branches_of(block, x)
    assert out.is_contiguous(memory_format=torch.channels_last) and error(out, wanted) < 1e-4
    upstream = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(one, x, upstream)[0] for one in (out, wanted))
    assert ours.is_contiguous(memory_format=torch.channels_last) and error(ours, theirs) < 1e-3


@given(convs(), seeds, st.booleans())
def test_maps_may_lie_with_their_channels_last_within(conv, seed, outside):
    block, before = block_on(conv, seed, 2), summing._layout
    x = images_for(block.geometry, seed, 3)
    wide = x.shape[1] > 1 and x[0, 0].numel() > 1
    if outside:
        x = x.contiguous(memory_format=torch.channels_last)
    try:
        summing._layout = lambda x, geometry: torch.channels_last if wide else torch.contiguous_format
        assert same(block, x)
    finally:
        summing._layout = before


@pytest.mark.parametrize('channels', [1, 8])
def test_large_maps_lie_with_their_channels_last_within_and_nobody_notices(channels, monkeypatch):
    block = scatter(Block(nn.Conv2d(channels, 8, 3, padding=1), make_norm), 0)
    with torch.no_grad():
        block.expand(fitting(list(BRANCHES)[1:], block.geometry), 0.5)
    x, layouts = torch.randn(3, channels, 12, 13), []
    monkeypatch.setattr(terms, 'forward', lambda parts, x, low, forward=terms.forward: layouts.append(
        x.is_contiguous()) or forward(parts, x, low))
    upstream = torch.randn(3, 8, 12, 13)
    exact = results(copy.deepcopy(block).double(), branches_of, x.double(), upstream.double())
    got = results(block, Block.__call__, x, upstream)
    assert layouts == [channels == 1] and got[0].is_contiguous() and got[1].is_contiguous()
    for a, b in zip(got, exact):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-3)
    assert block(torch.randn(3, channels, 12, 16)[..., 1:14]).is_contiguous()  # of a slice, too


def test_compiled_as_one_graph():
    torch._dynamo.reset()
    block = training_block(nested=False)
    x, twin = x_for(block), copy.deepcopy(block)
    compiled = torch.compile(block, fullgraph=True, backend='eager')
    assert error(compiled(x), twin(x)) < EXACT
    assert all(torch.allclose(a, b, 1e-12, 1e-12) for a, b in zip(block.buffers(), twin.buffers()))
    torch._dynamo.reset()


def test_state_and_random_numbers_are_as_before():
    block = training_block()
    x, state = x_for(block), torch.get_rng_state()
    keys, attributes = list(block.state_dict()), set(vars(block))
    block(x).sum().backward()
    assert keys == list(block.state_dict()) and attributes == set(vars(block))
    assert torch.equal(state, torch.get_rng_state())
