"""Tools that fuse convolution and norm by the names of children or by a graph meet blocks."""
import copy

import pytest
import torch
from hypothesis import given, settings
from mmcv.cnn import fuse_conv_bn
from torch import nn
from torch.fx.experimental.optimization import fuse as fuse_graph

from mmdyrep import DyRepBackbone
from mmdyrep.reparam import BRANCHES, Block, Geometry, Statistics, expand, fold
from tests.convolutions import EXACT, choose, convolve, convs, error, images_for, network, scatter, seeds

from ..backbones import SMALL, difference, images, outputs, wrapped

NESTED = ('conv.branches.kxk.conv', 'conv.branches.1x1_kxk.conv')


def grown(conv: nn.Conv2d, seed: int) -> nn.Sequential:
    """Convolution, norm, ReLU; the convolution a block of all that fits, with blocks in it, numbers at random."""
    net = network(conv, seed)
    behind = {'conv': 'bn'}
    for place, name in enumerate(['conv', *NESTED]):
        parent = name.rpartition('.branches.')[0]
        if parent and not (isinstance(net.conv, Block) and name.split('.')[-2] in net.conv.branches):
            continue
        geometry = Geometry.of(net.get_submodule(name))
        expand(net, name, [branch for branch in BRANCHES if branch in choose(BRANCHES, geometry, seed + place)], behind,
               gamma=0.3)
    return scatter(net, seed + 1).eval()


@given(convs(), seeds)
@settings(max_examples=40)
def test_fused_by_names_of_children_the_network_computes_the_same(conv, seed):
    had_bias = conv.bias is not None
    net = grown(conv, seed)
    x = images_for(Geometry.of(conv), seed)
    with torch.no_grad():
        wanted = net(x)
        fused = fuse_conv_bn(copy.deepcopy(net))
        assert any(isinstance(module, nn.Identity) for module in fused.modules()) or not isinstance(net.conv, Block)
        assert error(fused(x), wanted) < EXACT
        if not isinstance(fused.conv, Block):
            return
        assert error(fused.conv(x), convolve(x, fused.conv.kernel(), fused.conv.geometry)) < EXACT
        fold(fused, 'conv', {'conv': 'bn'})
        assert type(fused.conv) is nn.Conv2d and (fused.conv.bias is not None) == had_bias
        assert error(fused(x), wanted) < EXACT


def test_a_wrapped_backbone_fused_by_its_own_way_afterwards_is_the_plain_one():
    net = wrapped(SMALL)
    net.expand('layer1.0.conv2')
    net.expand('layer1.0.conv2.branches.1x1_kxk.conv')
    net.expand('layer2.0.conv1', ['1x1_avg'])
    wanted = outputs(net, images())
    fused = fuse_conv_bn(copy.deepcopy(net))
    assert difference(outputs(fused, images()), wanted) < EXACT
    assert difference(outputs(fused.to_plain(), images()), wanted) < EXACT
    state = fused.state_dict()
    fused.switch_to_deploy()
    assert difference(outputs(fused, images()), wanted) < EXACT
    assert any(key.endswith('1x1_kxk.conv1.bias') for key in state)
    # that is no checkpoint of the backbone, and the loader says so
    with pytest.raises(RuntimeError, match='1x1_kxk.conv1.bias'):
        wrapped(SMALL).load_state_dict(state)


@pytest.mark.parametrize('change', [
    lambda net: net.expand('layer1.0.conv2', ['residual']),
    lambda net: net.remove('layer1.0.conv2', ['1x1']),
    lambda net: net.load_structure({'version': 1, 'ops': {'layer1.0.conv2': ['kxk', '1x1', '1xk']}}),
    lambda net: net.expand('layer1.0.conv1', ['1x1']),
])
def test_what_a_tool_has_fused_takes_no_more_changes(change):
    net = wrapped(SMALL)
    net.expand('layer1.0.conv2', ['1x1', '1x1_kxk'])
    net = fuse_conv_bn(net)
    wanted, keys = outputs(net, images()), list(net.state_dict())
    with pytest.raises(RuntimeError, match='a tool'):
        change(net)
    assert list(net.state_dict()) == keys
    assert difference(outputs(net, images()), wanted) == 0


class Reduced(nn.Module):
    """A convolution without norm, then one with, in the order that walkers over children get wrong at a block."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(self.reduce(x))).relu()


def test_a_walker_that_takes_the_norm_behind_a_block_for_another_convolution_is_found_out():
    net = DyRepBackbone(scatter(Reduced().double(), 0)).eval()
    wanted = outputs(net, images())
    plain = fuse_conv_bn(net.to_plain())
    assert difference(outputs(plain, images()), wanted) < EXACT
    net.expand('conv')
    fuse_conv_bn(net)
    for use in (lambda: net(images()), net.to_plain, net.switch_to_deploy, net.eval,
                lambda: net.remove('conv', ['residual', '1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1'])):
        with pytest.raises(RuntimeError, match='bn, the batch norm behind conv, has become Identity'):
            use()


@given(convs(), seeds)
@settings(max_examples=25)
def test_fused_by_its_graph_the_network_computes_the_same(conv, seed):
    net = grown(conv, seed)
    x = images_for(Geometry.of(conv), seed)
    with torch.no_grad():
        assert error(fuse_graph(net)(x), net(x)) < EXACT


def test_fused_in_pairs_by_name_the_network_computes_the_same():
    block = Block(scatter(nn.Conv2d(4, 6, (3, 5), padding=(1, 2), dilation=(1, 1)).double(), 0), nn.BatchNorm2d,
                  Statistics(torch.zeros(6), torch.ones(6)))
    with torch.no_grad():
        block.expand(['1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1'], 0.5)
    scatter(block, 1).eval()
    x = images_for(block.geometry, 0)
    pairs = [[f'branches.{name}.{pair}' for pair in part] for name in block.branches
             for part in ([('conv', 'bn')] if name != '1x1_avg' else []) + (
                 [('conv1', 'bn1')] if name.startswith('1x1_') else [])]
    fused = torch.ao.quantization.fuse_modules(copy.deepcopy(block), pairs)
    assert error(fused(x).detach(), block(x).detach()) < EXACT
    assert error(convolve(x, fused.kernel(), block.geometry), block(x).detach()) < EXACT
    # for quantization-aware training the norm goes into a module of another kind, in front of the padding
    trained = torch.ao.quantization.fuse_modules_qat(copy.deepcopy(block).train(), pairs)
    with pytest.raises((TypeError, AttributeError), match='ConvBn2d'):
        trained(x)
    with pytest.raises(TypeError, match='replaced by ConvBn2d'):
        trained.kernel()
