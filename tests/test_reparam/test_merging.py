"""A block with fixed statistics runs as one convolution: same function, same gradients, less kept."""
import copy
import io
import pickle
import threading
from typing import Callable

import pytest
import torch
from hypothesis import given, strategies as st
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint

from mmdyrep.reparam import Block, merged, merging
from mmdyrep.reparam.branches import BRANCHES
from tests.convolutions import EXACT, convs, error, images_for, scatter, seeds

from .test_block import block_on, conv3x3, make_norm


def full_block(channels: int = 4, nested: bool = True, **kwargs) -> Block:
    """All seven branches, all seven in both nested places, too, in eval mode."""
    block = Block(conv3x3(channels, **kwargs), make_norm)
    with torch.no_grad():
        block.expand(list(BRANCHES)[1:], 0.5)
        for name in ('kxk', '1x1_kxk') if nested else ():
            place = block.branches[name]
            place.conv = Block(place.conv, make_norm)
            # in 1x1_kxk the convolution has no padding, most branches don't fit
            place.conv.expand(list(BRANCHES)[1:] if name == 'kxk' else ['1x1_kxk', '1x1_avg'], 0.5)
    return scatter(block, 3).eval()


def x_for(block: Block, batch: int = 2, **kwargs) -> Tensor:
    return images_for(block.geometry, 1, batch).requires_grad_(**kwargs)


def calls_of(block: Block, run: Callable) -> list:
    """What `run` calls of the modules in a block, seen without a hook."""
    called = []
    original = nn.Conv2d._conv_forward
    try:
        def note(self, *args):
            called.append(self)
            return original(self, *args)
        nn.Conv2d._conv_forward = note
        run()
    finally:
        nn.Conv2d._conv_forward = original
    return called


def runs_merged(block: Block, x: Tensor) -> bool:
    return not calls_of(block, lambda: block(x))


@given(convs(), seeds, st.sampled_from([1, 2, 3]), st.booleans())
def test_function_and_gradients_are_those_of_the_branches(conv, seed, depth, of_input):
    block = block_on(conv, seed, depth).eval()
    x = images_for(block.geometry, seed).requires_grad_(of_input)
    assert not merging.why_branchwise(block)
    got, wanted = block(x), block.branchwise(x)
    assert error(got, wanted) < EXACT
    inputs = ([x] if of_input else []) + list(block.parameters())
    upstream = torch.randn_like(wanted)
    for ours, theirs in zip(torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream)):
        assert error(ours, theirs) < EXACT


@given(convs(), seeds, st.sampled_from([1, 2, 3]))
def test_kernel_is_that_of_the_exact_computation(conv, seed, depth):
    block = block_on(conv, seed, depth).eval()
    kernel = merging.merge(merging.parts_of(block), torch.float64)
    assert error(kernel.weight, block.kernel().weight) < EXACT and error(kernel.bias, block.kernel().bias) < EXACT


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_first_and_second_derivatives_are_those_of_differences(groups):
    block = full_block(groups=groups)
    inputs = [x_for(block, 1), *block.parameters()]
    assert torch.autograd.gradcheck(lambda x, *_: block(x), inputs)
    small = full_block(nested=False, groups=groups)
    inputs = [x_for(small, 1), *small.parameters()]
    assert torch.autograd.gradgradcheck(lambda x, *_: small(x), inputs)


def test_norms_that_have_been_fused_into_their_convolutions():
    block = full_block(nested=False)
    x = x_for(block)
    wanted = block(x).detach()
    for name in ('kxk', '1x1', '1x1_kxk', '1xk', 'kx1'):
        branch = block.branches[name]
        branch.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(branch.conv, branch.bn).requires_grad_()
        branch.bn = nn.Identity()
    for name in ('1x1_kxk', '1x1_avg'):
        branch = block.branches[name]
        branch.conv1 = torch.nn.utils.fusion.fuse_conv_bn_eval(branch.conv1, branch.bn1).requires_grad_()
        branch.bn1 = nn.Identity()
    out = block(x)
    assert runs_merged(block, x) and error(out, wanted) < EXACT and error(block.branchwise(x), wanted) < EXACT
    parameters = [x, *block.parameters()]
    upstream = torch.randn_like(out)
    for ours, theirs in zip(torch.autograd.grad(out, parameters, upstream),
                            torch.autograd.grad(block.branchwise(x), parameters, upstream)):
        assert error(ours, theirs) < EXACT


def test_input_and_own_tensors_alone_are_kept_for_backward():
    block = full_block()
    x = x_for(block)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
        block(x)
    own = {tensor.data_ptr() for tensor in [x, *block.parameters(), *block.buffers()]}
    assert len(kept) > 50 and all(tensor.data_ptr() in own for tensor in kept)


# ---------------------------------------------------------------------- when branches run

def hook(module: nn.Module) -> None:
    module.register_forward_pre_hook(lambda module, args: None)


WATCHED = {
    'hook on a norm': lambda block: hook(block.branches['1x1'].bn),
    'hook on a convolution': lambda block: block.branches['1x1_kxk'].conv1.register_forward_hook(lambda *args: None),
    'hook on a branch': lambda block: hook(block.branches['residual']),
    'hook on a nested block': lambda block: hook(block.origin.conv),
    'hook deep within': lambda block: hook(block.origin.conv.branches['1xk'].conv),
    'backward hook': lambda block: block.branches['kx1'].bn.register_full_backward_hook(lambda *args: None),
    'backward pre-hook': lambda block: block.branches['kx1'].register_full_backward_pre_hook(lambda *args: None),
    'forward of an instance': lambda block: setattr(
        block.branches['1xk'].conv, 'forward', block.branches['1xk'].conv.forward),
    'parametrization': lambda block: nn.utils.parametrizations.orthogonal(block.branches['1xk'].conv),
    'spectral norm': lambda block: nn.utils.spectral_norm(block.branches['1x1'].conv),
    'another module for a convolution': lambda block: setattr(
        block.branches['1xk'], 'conv', nn.Sequential(block.branches['1xk'].conv)),
    'another norm': lambda block: setattr(block.branches['1x1'], 'bn', nn.GroupNorm(2, 4).double()),
    'a norm of its own forward': lambda block: setattr(
        block.branches['1x1'].bn, '__class__', type('Own', (nn.BatchNorm2d, ), {'forward': lambda self, x: x})),
    'a norm in train mode': lambda block: block.branches['1x1_avg'].bn1.train(),
    'a norm in train mode deep within': lambda block: block.branches['1x1_kxk'].conv.branches['1x1_avg'].bn1.train(),
}


@pytest.mark.parametrize('what', WATCHED)
def test_branches_run_where_somebody_would_notice_that_they_do_not(what):
    block = full_block()
    x = x_for(block)
    assert runs_merged(block, x)
    WATCHED[what](block)
    assert not runs_merged(block, x)


def test_hooks_see_their_input_and_what_they_return_counts():
    block = full_block()
    x = x_for(block)
    seen = []
    handle = block.branches['1x1'].register_forward_hook(lambda module, args, out: seen.append(args[0]) or out * 2)
    doubled = block(x)
    handle.remove()
    assert seen[0] is x
    assert error(doubled - block(x), block.branches['1x1'](x) * block.scale.view(1, -1, 1, 1)) < EXACT
    assert runs_merged(block, x)


def test_hooks_for_all_modules_see_the_modules_within():
    block = full_block()
    seen = []
    handle = register_module_forward_hook(lambda module, args, out: seen.append(module))
    try:
        block(x_for(block))
    finally:
        handle.remove()
    assert {id(module) for module in block.modules() if not isinstance(module, nn.ModuleDict)} == set(map(id, seen))


def test_hooks_on_the_block_itself_are_called_once_and_let_it_run_merged():
    block = full_block()
    seen = []
    block.register_forward_hook(lambda module, args, out: seen.append(out))
    x = x_for(block)
    assert runs_merged(block, x) and len(seen) == 1


def test_convolution_of_mmcv_is_a_plain_one():
    conv = WrappedConv(4, 4, 3, padding=1, bias=False).double()
    block = scatter(Block(conv, make_norm), 0).eval()
    x = x_for(block)
    assert runs_merged(block, x) and error(block(x), block.branchwise(x)) < EXACT


# ---------------------------------------------------------------------- surroundings

def grads(out: Tensor, block: Block) -> list:
    return torch.autograd.grad(out.square().sum(), list(block.parameters()))


def same_gradients(out: Tensor, wanted: Tensor, block: Block, tolerance: float = EXACT) -> bool:
    return all(error(a, b) < tolerance for a, b in zip(grads(out, block), grads(wanted, block)))


def test_activation_checkpointing():
    block = full_block()
    x = x_for(block)
    for reentrant in (True, False):
        out = checkpoint(block, x, use_reentrant=reentrant)
        out.square().sum().backward()
        got = [parameter.grad.clone() for parameter in block.parameters()]
        block.zero_grad()
        assert all(error(a, b) < EXACT for a, b in zip(got, grads(block.branchwise(x), block)))


def test_functional_call_uses_the_numbers_given():
    block, other = full_block(), scatter(full_block(), 9)
    x = x_for(block)
    table = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    out = torch.func.functional_call(block, table, (x, ))
    assert error(out, other(x)) < EXACT and error(out, block(x)) > 0.01
    assert same_gradients(out, other(x), other)


def test_function_transforms():
    block = full_block()
    x = x_for(block).detach()
    direction = torch.randn_like(x)
    _, along = torch.func.jvp(block, (x, ), (direction, ))
    assert error(along, block(x + direction) - block(x)) < EXACT  # affine
    each = torch.func.vmap(lambda image: block(image[None])[0])(x)
    assert error(each, block(x)) < EXACT
    by = torch.func.grad(lambda table: torch.func.functional_call(block, table, (x, )).square().sum())(
        dict(block.named_parameters()))
    assert all(error(a, b) < EXACT for a, b in zip(by.values(), grads(block(x), block)))


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda block: torch.load(dumped(block), weights_only=False)])
def test_copies_are_on_their_own(copied):
    block = full_block()
    block.make_norm = nn.BatchNorm2d
    x, size = x_for(block).detach(), len(pickle.dumps(block))
    with torch.no_grad():
        for _ in range(3):
            wanted = block(x)
        twin = copied(block)
        scatter(twin, 5)
        assert error(block(x), wanted) == 0 and error(twin(x), twin.branchwise(x)) < EXACT
    assert len(pickle.dumps(block)) == size


def dumped(block: Block) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    return file


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_merges_in_the_precision_of_the_parameters(dtype):
    block = full_block(8).to(dtype)
    x = x_for(block).detach().to(dtype).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        out = block(x)
        out.sum().backward()  # whether backward runs under autocast or not
    # float64 stays float64 as with any convolution
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.bfloat16)
    assert {parameter.grad.dtype for parameter in block.parameters()} == {dtype} == {x.grad.dtype}
    wide = copy.deepcopy(block).double()
    wide.zero_grad()
    kernel = wide.kernel()
    cast, weight, bias = (value.to(out.dtype).double() for value in (x, *kernel))
    wanted = merging.convolve(cast, merging.Kernel(weight, bias), block.geometry)
    assert error(out.double(), wanted) < (EXACT if dtype == torch.float64 else 5e-3)
    wide(x.detach().double()).sum().backward()
    for ours, theirs in zip(block.parameters(), wide.parameters()):
        assert error(ours.grad.double(), theirs.grad) < (EXACT if dtype == torch.float64 else 3e-2)


def test_half_precision_without_autocast_merges_in_single():
    block = full_block(8).bfloat16()
    x = x_for(block).detach().bfloat16()
    kernel = merging.merge(merging.parts_of(block), torch.float32)
    assert error(kernel.weight.double(), copy.deepcopy(block).double().kernel().weight) < 1e-5
    out = block(x)
    assert out.dtype == torch.bfloat16 and all(grad.dtype == torch.bfloat16 for grad in grads(out, block))
    with pytest.raises(RuntimeError):
        block(x.float())


def test_channels_last_stays_channels_last():
    block = full_block(8).float().to(memory_format=torch.channels_last)
    x = x_for(block).detach().float().contiguous(memory_format=torch.channels_last).requires_grad_()
    out = block(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert error(out, block.branchwise(x)) < 1e-4 and same_gradients(out, block.branchwise(x), block, 1e-3)
    with torch.no_grad():
        for _ in range(3):
            assert block(x).is_contiguous(memory_format=torch.channels_last)


def test_frozen_parameters_get_no_gradient_and_the_input_does():
    block = full_block()
    block.branches['1x1'].requires_grad_(False)
    x = x_for(block)
    out, wanted = block(x), block.branchwise(x)
    learning = [x] + [parameter for parameter in block.parameters() if parameter.requires_grad]
    upstream = torch.randn_like(out)
    assert len(learning) < len(list(block.parameters()))
    for ours, theirs in zip(torch.autograd.grad(out, learning, upstream),
                            torch.autograd.grad(wanted, learning, upstream)):
        assert error(ours, theirs) < EXACT
    block.requires_grad_(False)
    assert error(torch.autograd.grad(block(x), x, upstream)[0],
                 torch.autograd.grad(block.branchwise(x), x, upstream)[0]) < EXACT


def test_no_images_and_single_images():
    block = full_block()
    x = x_for(block)[:0]
    assert block(x).shape == block.branchwise(x).shape
    assert all(torch.equal(a, torch.zeros_like(a)) for a in grads(block(x), block))
    with pytest.raises(ValueError, match='4D'):
        block(x_for(block)[0])


@pytest.mark.parametrize('images, merged', [(2, False), (4, True)])
def test_fewer_positions_than_channels_run_branch_by_branch_since_merging_would_cost_more(images, merged):
    block = full_block(16, nested=False)
    x = torch.randn(images, 16, 2, 2, dtype=torch.float64)
    assert runs_merged(block, x) == merged
    with torch.no_grad():
        assert runs_merged(block, x)  # the kernel is kept
    del block.branches['1x1_kxk']
    assert runs_merged(block, x)


def test_changes_between_forward_and_backward_are_noticed():
    block = full_block()
    out = block(x_for(block))
    with torch.no_grad():
        block.branches['1x1'].bn.running_var.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.sum().backward()


def test_compiled_as_one_graph_and_anew_when_norms_change_their_mode():
    torch._dynamo.reset()
    graphs = []
    block = full_block(nested=False)
    x = x_for(block)
    compiled = torch.compile(block, fullgraph=True, backend=lambda graph, inputs: graphs.append(graph) or graph)
    out = compiled(x)
    assert error(out, block(x)) < EXACT and same_gradients(out, block(x), block)
    for _ in range(2):
        with torch.no_grad():
            block.branches['1x1'].conv.weight.data.mul_(2)
        assert error(compiled(x), block(x)) < EXACT
    sizes = [len(graph.graph.nodes) for graph in graphs]
    block.train()
    assert error(compiled(x), block(x)) < EXACT and len(graphs) == len(sizes) + 1
    torch._dynamo.reset()


def test_traced_and_symbolically_traced():
    block = full_block()
    x = x_for(block).detach()
    traced = torch.jit.trace(block, x)
    assert error(traced(x), block(x)) < EXACT
    with torch.no_grad():
        scatter(block, 8)
    assert error(traced(x), block(x)) < EXACT  # parameters stay parameters
    graph = torch.fx.symbolic_trace(block)
    assert error(graph(x), block(x)) < EXACT


def test_threads_do_not_disturb_each_other():
    block = full_block()
    x = x_for(block).detach()
    wanted, wrong = block.branchwise(x).detach(), []

    @torch.no_grad()
    def many() -> None:
        wrong.extend(1 for _ in range(50) if error(block(x), wanted) > EXACT)
    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_gradients_stand_at_the_places_of_their_parameters():
    parts = merging.parts_of(full_block())
    tensors = merged.tensors_of(parts)
    found = merged.at_places(parts, merged.with_tensors(parts, iter(range(len(tensors)))))
    assert found == list(range(len(tensors)))
