"""The kernel kept while no gradients are asked for: used as long as nothing has changed, and not longer."""
import copy

import pytest
import torch
from torch import nn

from mmdyrep.reparam import constant, merging
from tests.convolutions import EXACT, error, scatter

from .test_merging import full_block, x_for


@pytest.fixture
def merges(monkeypatch):
    """Number of kernels that have been made, in a list."""
    made, merge = [], merging.merge
    monkeypatch.setattr(merging, 'merge', lambda *args: made.append(1) or merge(*args))
    return made


def settled(block):
    """A block whose kernel is kept, and its input."""
    x = x_for(block).detach()
    with torch.no_grad():
        block(x), block(x)
    return x


@pytest.mark.parametrize('without', [torch.no_grad, torch.inference_mode])
def test_the_kernel_is_made_twice_and_then_used(merges, without):
    block = full_block()
    x = x_for(block).detach()
    with without():
        outs = [block(x) for _ in range(5)]
    assert len(merges) == 2 and all(torch.equal(out, outs[0]) for out in outs)


def tensors(block):
    return {**dict(block.named_parameters()), **{name: buffer for name, buffer in block.named_buffers()
                                                 if not name.endswith('num_batches_tracked')}}


def by_number(block, name):
    with torch.no_grad():
        tensors(block)[name].view(-1)[-1].mul_(1.5)


def by_data(block, name):
    tensors(block)[name].data.view(-1)[-1] *= 1.5


def by_numpy(block, name):
    tensors(block)[name].detach().numpy().reshape(-1)[-1] *= 1.5


def by_another_parameter(block, name):
    owner, _, key = name.rpartition('.')
    module = block.get_submodule(owner)
    value = getattr(module, key) * 1.5
    setattr(module, key, nn.Parameter(value.detach()) if key in module._parameters else value)


def by_other_data(block, name):
    tensors(block)[name].data = tensors(block)[name].data * 1.5


def by_state_dict(block, name):
    state = copy.deepcopy(block.state_dict())
    state[name] *= 1.5
    block.load_state_dict(state)


def by_assigned_state_dict(block, name):
    state = copy.deepcopy(block.state_dict())
    state[name] *= 1.5
    block.load_state_dict(state, assign=True)


CHANGES = [by_number, by_data, by_numpy, by_another_parameter, by_other_data, by_state_dict, by_assigned_state_dict]
NAMES = list(tensors(full_block()))


@pytest.mark.parametrize('change', CHANGES)
def test_no_change_of_any_tensor_goes_unseen(change):
    # a column of seven branches is nested twice in the block: sample its tensors, all kinds of them
    for name in NAMES[::3]:
        block = full_block()
        x = settled(block)
        with torch.no_grad():
            before = block(x)
        change(block, name)
        with torch.no_grad():
            assert not torch.equal(block(x), before), name
            assert error(block(x), block.branchwise(x)) < EXACT, name


@pytest.mark.parametrize('kind', [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize('foreach', [True, False])
def test_steps_of_an_optimizer_are_seen(kind, foreach):
    block = full_block()
    x = settled(block)
    block(x).square().mean().backward()
    with torch.no_grad():
        before = block(x), block(x), block(x)
    kind(block.parameters(), lr=1e-3, foreach=foreach).step()
    with torch.no_grad():
        assert error(block(x), block.branchwise(x)) < EXACT and error(block(x), before[0]) > 1e-9


def test_numbers_swapped_with_an_averaged_copy_and_back():
    block, average = full_block(), scatter(full_block(), 4)
    x = settled(block)
    with torch.no_grad():
        first, other = block(x), average(x)
        for wanted in (other, first):
            # as EMAHook swaps them
            for a, b in zip(block.state_dict().values(), average.state_dict().values()):
                keep = a.data.clone()
                a.data.copy_(b.data)
                b.data.copy_(keep)
            assert error(block(x), wanted) < EXACT


def test_changes_of_structure_and_eps_are_seen():
    block = full_block()
    x = settled(block)
    with torch.no_grad():
        block.branches['1x1'].bn.eps = 0.5
        assert error(block(x), block.branchwise(x)) < EXACT
        settled(block)
        del block.branches['kx1']
        assert error(block(x), block.branchwise(x)) < EXACT
    block.float()
    with torch.no_grad():
        assert block(x.float()).dtype == torch.float32


def test_what_is_no_number_is_computed_anew(merges):
    block = full_block()
    block.branches['1x1'].conv.weight.data[0, 0] = float('nan')
    x = settled(block)
    with torch.no_grad():
        assert block(x).isnan().any()
        block.branches['1x1'].conv.weight.data[0, 0] = 0
        assert not block(x).isnan().any()


def test_a_kernel_from_inference_mode_serves_under_autograd():
    block = full_block().requires_grad_(False)
    x = x_for(block)
    with torch.inference_mode():
        for _ in range(3):
            block(x)
    block(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_nothing_is_kept_in_training_and_of_blocks_that_are_gone():
    block = full_block()
    x = settled(block)
    assert constant._kept[block].found
    block(x)
    assert block not in constant._kept
    # the forward of a checkpointed block: nothing to compare with is copied
    for _ in range(3):
        with torch.no_grad():
            block(x)
        assert constant._kept[block].found is None
        block(x)
        with torch.no_grad():
            block.origin.bn.weight.add_(1e-3)
    with torch.no_grad():
        block(x)
    size = len(constant._kept)
    del block
    assert len(constant._kept) == size - 1


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('shape', [(3, ), (4, ), (2, 3, 3, 3), (2, 4, 3, 3)])
def test_every_bit_counts(dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    for layout in (tensor, tensor.to(memory_format=torch.channels_last) if len(shape) == 4 else tensor,
                   torch.cat([tensor[:1], tensor])[1:], torch.stack([tensor, tensor], -1)[..., 0]):
        assert constant.same_bits(layout, layout.clone())
        changed = layout.clone()
        changed.view(-1)[-1].mul_(-1) if changed.is_contiguous() else changed.mul_(-1)
        assert not constant.same_bits(layout, changed)
    assert not constant.same_bits(tensor, tensor[:1])
    assert not constant.same_bits(torch.zeros(3), torch.zeros(3, dtype=torch.int32))
