"""What a block takes over from its convolution and hands back: hooks, answers, modes, counts."""
import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from mmengine.model import constant_init, kaiming_init, normal_init
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, prune

from mmdyrep.reparam import BRANCHES, Geometry, StructureError, describe, examine, expand, fold, fold_all, remove
from mmdyrep.reparam.structure import check
from tests.convolutions import EXACT, choose, convolve, convs, error, images_for, network, scatter, seeds

BEHIND = {'conv': 'bn'}
INNER = ('conv.branches.kxk.conv', 'conv.branches.1x1_kxk.conv')


def small(**kwargs) -> nn.Sequential:
    conv = nn.Conv2d(4, 4, 3, padding=1, **kwargs).double()
    return network(scatter(conv, 3), 0)


# ---------------------------------------------------------------------- hooks

class Ear:
    """Hooks of every kind on a module; what they heard, and their handles."""

    def __init__(self, module: nn.Module) -> None:
        self.heard = {}
        self.handles = [
            module.register_forward_hook(self.note('forward', lambda m, args, out: (args, out))),
            module.register_forward_hook(self.note('keywords', lambda m, args, kwargs, out: (args, kwargs, out)),
                                         with_kwargs=True),
            module.register_forward_hook(self.note('always', lambda m, args, out: out), always_call=True),
            module.register_forward_pre_hook(self.note('pre', lambda m, args: args)),
            module.register_forward_pre_hook(self.note('pre keywords', lambda m, args, kwargs: (args, kwargs)),
                                             with_kwargs=True),
            module.register_full_backward_hook(self.note('backward', lambda m, grads, outs: (grads, outs))),
            module.register_full_backward_pre_hook(self.note('backward pre', lambda m, outs: outs)),
        ]

    def note(self, name, pick):
        def hook(*args):
            self.heard[name] = tensors(pick(*args))
        return hook


def tensors(value) -> list:
    if isinstance(value, torch.Tensor):
        return [value.detach().clone()]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for item in items for tensor in tensors(item)]


def listen(net: nn.Module, ear: Ear, x: torch.Tensor) -> dict:
    ear.heard.clear()
    net(x.clone().requires_grad_()).square().sum().backward()
    return dict(ear.heard)


def test_hooks_see_the_whole_op_before_in_and_after_a_block_and_handles_go_on_working():
    net = small(bias=False).eval()
    ear, x = Ear(net.conv), images_for(Geometry.of(net.conv), 0)
    wanted = listen(net, ear, x)
    assert len(wanted) == 7
    steps = [lambda: expand(net, 'conv', list(BRANCHES), BEHIND, gamma=0.5),
             lambda: [expand(net, name, ['1x1_avg', '1x1_kxk'], BEHIND, gamma=0.5) for name in INNER],
             lambda: remove(net, 'conv', ['1x1', 'residual', '1x1_kxk'], BEHIND),
             lambda: fold(net, 'conv', BEHIND)]
    for step in steps:
        step()
        heard = listen(net, ear, x)
        assert heard.keys() == wanted.keys()
        for name, values in wanted.items():
            assert all(error(a, b) < EXACT for a, b in zip(heard[name], values)), name
    assert type(net.conv) is nn.Conv2d
    expand(net, 'conv', ['1x1'], BEHIND, gamma=0.5)
    for handle in ear.handles[::2]:
        handle.remove()
    assert len(listen(net, ear, x)) == 3
    fold(net, 'conv', BEHIND)
    for handle in ear.handles[1::2]:
        handle.remove()
    assert listen(net, ear, x) == {}


def test_hooks_registered_on_a_block_stay_with_the_op():
    net = small(bias=False).eval()
    expand(net, 'conv', ['1x1'], BEHIND, gamma=0.5)
    ear, x = Ear(net.conv), images_for(net.conv.geometry, 0)
    wanted = listen(net, ear, x)
    fold_all(net, BEHIND)
    assert all(error(a, b) < EXACT for name in wanted for a, b in zip(listen(net, ear, x)[name], wanted[name]))


def forward_of_its_own(conv):
    conv.forward = lambda x: nn.functional.conv2d(x, conv.weight) * 2


def convolution_of_its_own(conv):
    conv._conv_forward = lambda x, weight, bias: nn.Conv2d._conv_forward(conv, x, weight, bias) * 2


@pytest.mark.parametrize('change, message', [
    (forward_of_its_own, 'has a forward of its own'),
    (convolution_of_its_own, 'has a _conv_forward of its own'),
    (parametrizations.weight_norm, 'its weight has been parametrized or pruned'),
    (lambda conv: prune.random_unstructured(conv, 'weight', 0.5), 'its weight has been'),
    (lambda conv: prune.random_unstructured(conv, 'bias', 0.5), 'its bias has been'),
    (lambda conv: conv.register_backward_hook(lambda *args: None), 'register_full_backward_hook'),
])
def test_what_is_done_to_a_convolution_after_the_survey_and_can_not_be_taken_over_is_refused(change, message):
    net = small().eval()
    change(net.conv)
    x = images_for(Geometry(4, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1), 0)
    before = net(x).detach()
    with pytest.raises(ValueError, match=f'conv can not be expanded: .*{message}'):
        expand(net, 'conv', ['1x1'], BEHIND, gamma=0.5)
    with pytest.raises(StructureError, match=f'conv: .*{message}'):
        check({'version': 1, 'ops': {'conv': ['kxk', '1x1']}}, net, ['conv'], {})
    assert torch.equal(net(x).detach(), before) and not describe(net)['ops']


def test_another_module_in_the_place_of_an_op_is_refused():
    net = small()
    net.conv = nn.Sequential(net.conv, nn.Dropout())
    with pytest.raises(ValueError, match='conv can not be expanded: has become Sequential'):
        expand(net, 'conv', ['1x1'], BEHIND, gamma=0.5)


# ---------------------------------------------------------------------- answers

ASKED = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'padding_mode',
         'output_padding', 'transposed')


@given(convs(), seeds)
@settings(max_examples=40)
def test_a_block_answers_what_its_convolution_was_asked(conv, seed):
    net = network(conv, seed).eval()
    wanted = {name: getattr(conv, name) for name in ASKED}
    shape, had_bias = conv.weight.shape, conv.bias is not None
    geometry = Geometry.of(conv)
    x = images_for(geometry, seed)
    if not expand(net, 'conv', choose(BRANCHES, geometry, seed), BEHIND, gamma=0.5):
        return
    for name in INNER:
        if name.split('.')[2] in net.conv.branches:
            expand(net, name, choose(BRANCHES, Geometry.of(net.get_submodule(name)), seed), BEHIND, gamma=0.5)
    block = scatter(net, seed).conv
    assert {name: getattr(block, name) for name in ASKED} == wanted
    kernel = block.kernel()
    assert block.weight.shape == shape and block.weight.dtype == torch.float64
    assert torch.equal(block.weight, kernel.weight) and (block.bias is not None) == had_bias
    if had_bias:
        assert torch.equal(block.bias, kernel.bias)
        by_attributes = nn.functional.conv2d(x, block.weight, block.bias, block.stride, block.padding, block.dilation,
                                             block.groups)
        assert error(by_attributes, block(x)) < EXACT


def test_gradients_of_a_loss_on_the_weight_reach_all_branches_and_are_those_of_the_merged_kernel():
    net = small(bias=True).eval()
    expand(net, 'conv', list(BRANCHES), BEHIND, gamma=0.5)
    for name in INNER:
        expand(net, name, ['1x1_kxk', '1x1_avg'], BEHIND, gamma=0.5)
    block = scatter(net, 1).conv
    x = images_for(block.geometry, 0)
    parameters = list(block.parameters())
    direct = torch.autograd.grad(block(x).square().sum(), parameters)
    merged = torch.autograd.grad(convolve(x, block.merged(), block.geometry).square().sum(), parameters)
    assert all(error(a, b) < EXACT for a, b in zip(merged, direct))
    decay = torch.autograd.grad(block.weight.square().sum(), parameters, allow_unused=True)
    assert sum(grad is not None and grad.abs().sum() > 0 for grad in decay) >= len(parameters) - len(
        [name for name, _ in block.named_parameters() if name.endswith('.bias')])
    assert not block.kernel().weight.requires_grad


def test_dtype_and_device_of_the_weight_are_those_of_the_original():
    net = small().float()
    expand(net, 'conv', ['1x1'], BEHIND, gamma=0.5)
    assert net.conv.weight.dtype == net.conv.bias.dtype == torch.float32
    assert net.conv.half().weight.dtype == torch.float16
    assert net.conv.weight.device == torch.device('cpu')


@pytest.mark.parametrize('setting', [
    lambda block: setattr(block, 'weight', nn.Parameter(torch.zeros(4, 4, 3, 3))),
    lambda block: setattr(block, 'weight', torch.zeros(4, 4, 3, 3)),
    lambda block: setattr(block, 'bias', nn.Parameter(torch.zeros(4))),
    lambda block: setattr(block, 'bias', None),
    lambda block: setattr(block, 'stride', (2, 2)),
    lambda block: block.register_parameter('weight', None),
])
def test_setting_is_an_error_in_words(setting):
    net = small().eval()
    expand(net, 'conv', ['1x1'], BEHIND, gamma=0.5)
    keys, kernel = list(net.state_dict()), net.conv.kernel()
    with pytest.raises(AttributeError, match='of a block can not be set: it follows from its branches'):
        setting(net.conv)
    assert list(net.state_dict()) == keys and torch.equal(net.conv.kernel().weight, kernel.weight)


def test_a_norm_is_not_fused_into_a_block_by_hand():
    net = small().eval()
    expand(net, 'conv', ['1x1'], BEHIND, gamma=0.5)
    with pytest.raises(AttributeError, match='weight of a block can not be set'):
        fuse_conv_bn_eval(net.conv, net.bn)


def test_the_answers_are_in_no_list_of_parameters_and_copies_keep_them():
    net = small().eval()
    expand(net, 'conv', ['1x1', '1x1_kxk'], BEHIND, gamma=0.5)
    names = [name for name, _ in net.conv.named_parameters()] + list(net.conv.state_dict())
    assert not {'weight', 'bias'} & set(names)
    for twin in (copy.deepcopy(net.conv), pickle.loads(pickle.dumps(net.conv))):
        assert torch.equal(twin.weight, net.conv.weight) and twin.kernel_size == (3, 3)


@pytest.mark.parametrize('init', [kaiming_init, normal_init, lambda m: constant_init(m, 3, 2)])
def test_functions_that_initialize_whatever_has_a_weight_leave_a_block_as_it_is(init):
    net = small()
    expand(net, 'conv', ['1x1', '1x1_kxk'], BEHIND, gamma=0.5)
    before = copy.deepcopy(net.conv.state_dict())
    init(net.conv)
    assert all(torch.equal(value, before[key]) for key, value in net.conv.state_dict().items())


# ---------------------------------------------------------------------- modes and counts

def test_the_bias_is_trainable_again_only_if_it_was():
    for weight, bias in ((True, False), (False, True), (True, True)):
        net = small()
        net.conv.weight.requires_grad, net.conv.bias.requires_grad = weight, bias
        expand(net, 'conv', ['1x1'], BEHIND, gamma=0.5)
        fold(net, 'conv', BEHIND)
        assert (net.conv.weight.requires_grad, net.conv.bias.requires_grad) == (weight, bias)


@pytest.mark.parametrize('bias', [True, False])
def test_cumulative_averages_go_on_as_in_the_plain_network(bias):
    """A norm in the block weighs each batch as the one behind does."""
    plain = small(bias=bias)
    plain.bn.momentum = None
    plain.bn.reset_running_stats()
    batches = [images_for(Geometry.of(plain.conv), seed, batch=4) for seed in range(5)]
    with torch.no_grad():
        for x in batches[:3]:
            plain(x)
        net = copy.deepcopy(plain)
        expand(net, 'conv', ['1x1', '1x1_kxk'], BEHIND, gamma=0.5)
        expand(net, INNER[0], ['residual'], BEHIND, gamma=0.5)
        norms = [norm for norm in net.modules() if isinstance(norm, nn.BatchNorm2d)]
        assert {int(norm.num_batches_tracked) for norm in norms} == {3}
        assert {norm.momentum for norm in norms} == {None}
        starts = {norm: norm.running_mean.clone() for norm in norms}
        seen = {norm: [] for norm in norms}
        for norm in norms:
            norm.register_forward_pre_hook(lambda m, args: seen[m].append(args[0].mean((0, 2, 3))))
        for x in batches[3:]:
            plain(x)
            net(x)
        assert int(plain.bn.num_batches_tracked) == 5
        for norm in norms:
            assert int(norm.num_batches_tracked) == 5
            # what it began with stands for three batches
            assert error(norm.running_mean, (3 * starts[norm] + sum(seen[norm])) / 5) < EXACT
        expand(net, 'conv', ['1xk'], BEHIND, gamma=0.5)
        assert int(net.conv.branches['1xk'].bn.num_batches_tracked) == 5
        fold(net, 'conv', BEHIND)
        assert int(net.bn.num_batches_tracked) == 5


# ---------------------------------------------------------------------- parts loaded, weights computed

@given(convs(), seeds)
@settings(max_examples=25)
def test_a_block_loaded_by_itself_reads_the_file_of_a_convolution(conv, seed):
    source = scatter(copy.deepcopy(conv), seed + 1)
    net = network(conv, seed).eval()
    geometry = Geometry.of(conv)
    if not expand(net, 'conv', choose(BRANCHES, geometry, seed), BEHIND, gamma=0.5):
        return
    scatter(net, seed)
    x = images_for(geometry, seed)
    scale = net.conv.scale.clone()
    net.conv.load_state_dict(source.state_dict(), strict=True)
    assert error(net.conv(x), source(x)) < EXACT and torch.equal(net.conv.scale, scale)
    state = dict(source.state_dict(), strange=torch.ones(1))
    found = net.conv.load_state_dict(state, strict=False)
    assert found.unexpected_keys == ['strange'] and not found.missing_keys
    # its own files load as ever
    twin = copy.deepcopy(net.conv)
    scatter(net.conv, seed + 2)
    net.conv.load_state_dict(twin.state_dict())
    assert torch.equal(net.conv(x), twin(x))


@pytest.mark.parametrize('compute', [lambda conv: prune.l1_unstructured(conv, 'weight', 0.5),
                                     parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.parametrize('branch', ['kxk', '1x1'])
def test_a_weight_in_a_block_that_is_computed_from_others_is_neither_read_nor_written(compute, branch):
    net = small().eval()
    expand(net, 'conv', ['1x1', 'residual'], BEHIND, gamma=0.5)
    compute(net.conv.branches[branch].conv)
    x = images_for(net.conv.geometry, 0)
    before = net(x).detach()
    for change in (lambda: net.conv.weight, lambda: fold(net, 'conv', BEHIND),
                   lambda: remove(net, 'conv', [branch] if branch != 'kxk' else ['residual'], BEHIND)):
        with pytest.raises(TypeError, match='computed from others'):
            change()
    assert torch.equal(net(x).detach(), before)


# ---------------------------------------------------------------------- hooks that change the output

@pytest.mark.parametrize('change', [lambda m, args, out: out.relu(), lambda m, args, out: out.mul_(2)],
                         ids=['another tensor', 'in place'])
def test_a_hook_that_changes_the_output_keeps_the_block_from_being_fused_in_words(change):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).double()
    found = examine(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    handle = net[0].register_forward_hook(change)
    net.eval()
    with torch.no_grad():
        before = net(x)
        expand(net, '0', ['1x1', '1x1_avg'], found.ops, gamma=1.0)
        assert (net(x) - before).abs().max() < 1e-12  # expanded it is exact
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for fuse in (lambda: fold(net, '0', found.ops), lambda: fold_all(net, found.ops),
                 lambda: remove(net, '0', ['1x1', '1x1_avg'], found.ops)):
        with pytest.raises(StructureError, match='0 can not be fused: a forward hook on it changes its output'):
            fuse()
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    handle.remove()
    with torch.no_grad():
        before = net(x)
        fold(net, '0', found.ops)
        assert (net(x) - before).abs().max() < 1e-12


def test_a_hook_that_reads_does_not():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).double().eval()
    found, seen = examine(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64)), []
    net[0].register_forward_hook(lambda m, args, out: seen.append(out))
    net[0].register_full_backward_hook(lambda m, grads, outs: None)
    expand(net, '0', ['1x1', '1x1_avg'], found.ops, gamma=1.0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = net(x)
    copy.deepcopy(net)
    fold(net, '0', found.ops)
    assert (net(x) - before).abs().max() < 1e-12 and len(seen) == 2
