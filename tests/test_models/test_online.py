"""`online=True`: statistics of blocks are fixed between updates, blocks run as one convolution in training, too."""
import copy

import pytest
import torch
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.dynamics import Calibration, macs
from mmdyrep.dynamics.calibration import batch_statistics as of_map
from mmdyrep.reparam import merging
from mmdyrep.reparam.online import missing, norms_in
from mmdyrep.reparam.surgery import outer_blocks

from ..backbones import block_norms, difference, unfriendly, wrapped

RESNET = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)
OP = 'layer2.0.conv1'


def images(seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)


def online(**settings) -> DyRepBackbone:
    return wrapped(RESNET, online=True, **settings)


def fresh(**settings) -> DyRepBackbone:
    """As built, without statistics."""
    torch.manual_seed(0)
    net = DyRepBackbone(RESNET, online=True, static=True, **settings).double()
    net.init_weights()
    return net


def calibration(net: DyRepBackbone, number: int = 3) -> Calibration:
    net.train()
    return Calibration(net, net, [images(seed=seed) for seed in range(number)])


def trained_output(net: DyRepBackbone, x: torch.Tensor) -> tuple:
    """Output in train mode, statistics left as they are."""
    return tuple(out.detach() for out in copy.deepcopy(net).train()(x))


@pytest.mark.parametrize('calibrated', [True, False])
def test_rep_and_dep_are_exact_in_train_mode(calibrated):
    net = online()
    measure = calibration(net) if calibrated else None
    x = images(seed=9)
    before = trained_output(net, x)
    net.expand(OP, measure=measure)
    net.expand(f'{OP}.branches.1x1_kxk.conv', measure=measure)
    net.expand(f'{OP}.branches.kxk.conv', measure=measure)
    assert difference(trained_output(net, x), before) < 1e-9
    unfriendly(net, 3)
    before = trained_output(net, x)
    net.remove(f'{OP}.branches.kxk.conv', ['1x1', '1x1_avg'], measure=measure)
    net.remove(OP, ['1x1_kxk', 'kx1'], measure=measure)
    assert difference(trained_output(net, x), before) < 1e-9


def test_the_norm_behind_trains_and_the_blocks_do_not_change_their_statistics():
    net = online()
    net.expand(OP, measure=calibration(net))
    net.train()
    assert net.layer2[0].bn1.training and net.get_submodule(OP).training
    assert not any(norm.training for norm in block_norms(net, OP))
    assert not merging.why_branchwise(net.get_submodule(OP))
    state = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net(images())[-1].square().mean().backward()
    changed = {name for name, buffer in net.named_buffers() if not torch.equal(buffer, state[name])}
    assert not any(name.startswith(OP) for name in changed) and 'layer2.0.bn1.running_mean' in changed
    assert all(norm.weight.grad.abs().sum() > 0 for norm in block_norms(net, OP))


def test_default_is_the_papers():
    net = wrapped(RESNET)
    net.expand(OP)
    net.train()
    assert not net.online and all(norm.training for norm in block_norms(net, OP))


def test_static_takes_its_statistics_from_the_first_batch_with_its_function_kept():
    net, x = fresh(), images()
    assert missing(net.get_submodule(OP))
    expected = copy.deepcopy(net).train()
    for block in outer_blocks(expected).values():
        block.settled = True
    wanted = tuple(out.detach() for out in expected(x))
    net.train()
    seen = {}
    for name, norm in net.named_modules():
        if norm in block_norms(net, OP):
            norm.register_forward_pre_hook(
                lambda module, args, name=name: seen.setdefault(name, of_map(args[0])) and None)
    assert difference(tuple(out.detach() for out in net(x)), wanted) < 1e-9
    assert len(seen) == len(block_norms(net, OP)) and not missing(net.get_submodule(OP))
    for name, found in seen.items():
        norm = net.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, found[0])
        torch.testing.assert_close(norm.running_var, found[1])
    # later batches change nothing any more, nor do they after a load
    state = {key: value.clone() for key, value in net.state_dict().items() if 'branches' in key}
    net.train()
    net(images(seed=5))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    again = fresh()
    again.load_state_dict(net.state_dict())
    again.train()
    again(images(seed=6))
    assert all(torch.equal(again.state_dict()[key], value) for key, value in state.items())


def test_evaluation_takes_no_statistics():
    net = fresh().eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        net(images())
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


def test_statistics_of_the_first_batch_under_checkpointing_and_autocast():
    net, twin = fresh(), fresh()
    twin.load_state_dict(net.state_dict())
    net.train(), twin.train()
    net(images())
    for stage in (twin.layer1, twin.layer2, twin.layer3, twin.layer4):
        for layer in stage:
            layer.with_cp = True
    twin(images().requires_grad_())[-1].sum().backward()
    ours, theirs = ({key: value for key, value in model.state_dict().items() if 'branches' in key}
                    for model in (net, twin))
    # checkpointing runs without gradients first, where a kept kernel takes the place of small blocks' branches
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    half = fresh().float().train()
    with torch.autocast('cpu', torch.bfloat16):
        half(images().float())[-1].float().sum().backward()
    assert not missing(half.get_submodule(OP))


def test_compiled_training_takes_statistics_in_its_first_step():
    torch._dynamo.reset()
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).double()
    net = DyRepBackbone(block, input_shape=(4, 8, 8), static=True, online=True).train()
    twin = copy.deepcopy(net)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    compiled = torch.compile(net, backend='eager')
    for _ in range(2):
        torch.testing.assert_close(compiled(x), twin(x))
    assert not missing(net) and all(torch.equal(a, b) for a, b in zip(
        [norm.running_var for norm in norms_in(net[0])], [norm.running_var for norm in norms_in(twin[0])]))
    torch._dynamo.reset()


def test_executed_macs_are_those_of_the_plain_network():
    net = online()
    x = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    plain = macs.count(net, x).total
    net.train()
    net.expand(OP)
    net.expand(f'{OP}.branches.kxk.conv')
    net.expand('conv1')
    assert macs.executed(net, x) == plain < macs.count(net, x).total
    paper = wrapped(RESNET)
    paper.expand(OP)
    paper.train()
    assert macs.executed(paper, x) == macs.count(paper, x).total
