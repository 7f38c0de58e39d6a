"""The norm of the branches."""
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.models.norms import check_norm, norm_maker

from ..backbones import SMALL, block_norms, difference, images, outputs, wrapped

OP = 'layer1.0.conv2'


def test_without_norm_cfg_class_eps_and_momentum_are_those_of_the_norm_behind():
    net = wrapped(SMALL)
    behind = net.norm_behind(OP)
    behind.eps, behind.momentum = 0.01, 0.3
    net.expand(OP)
    assert {(type(norm), norm.eps, norm.momentum) for norm in block_norms(net, OP)} == {(nn.BatchNorm2d, 0.01, 0.3)}


def test_norm_cfg_decides_for_all_branches_nested_ones_included():
    net = wrapped(SMALL, norm_cfg=dict(type='SyncBN', eps=0.001, momentum=0.02, requires_grad=True))
    before = outputs(net, images())
    net.expand(OP)
    net.expand(f'{OP}.branches.kxk.conv')
    norms = block_norms(net, OP)
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.001, 0.02)}
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert type(net.norm_behind(OP)) is nn.BatchNorm2d
    assert difference(outputs(net, images()), before) < 1e-9


def test_class_as_type():
    make = norm_maker(dict(type=nn.BatchNorm2d, eps=0.1))(None)
    assert make(4).eps == 0.1 and make(4).num_features == 4


@pytest.mark.parametrize('cfg', [
    dict(type='GN', num_groups=1), dict(type='LN'), dict(type='NoSuchNorm'), dict(eps=1e-3),
    dict(type='BN', affine=False), dict(type='BN', track_running_stats=False)])
def test_anything_but_a_full_batch_norm_is_refused(cfg):
    with pytest.raises(ValueError, match='norm_cfg must'):
        check_norm(cfg)


def test_sync_bn_backbone_on_a_cpu_reverted_as_the_runner_does():
    net = DyRepBackbone(dict(type='mmseg.ResNetV1c', depth=18, base_channels=8, stem_channels=8,
                             norm_cfg=dict(type='SyncBN')))
    net.expand('layer1.0.conv1')
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in block_norms(net, 'layer1.0.conv1'))
    net = revert_sync_batchnorm(net).double()
    before = outputs(net, images())
    net.train()
    net.expand('layer2.0.conv1')
    net.expand('layer1.0.conv1.branches.kxk.conv')
    assert difference(outputs(net, images()), before) < 1e-9
    net.train()
    assert all(torch.isfinite(out).all() for out in net(images()))
