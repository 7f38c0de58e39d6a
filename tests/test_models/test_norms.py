"""The norm of the branches."""
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.models.norms import check_norm, norm_maker
from mmdyrep.reparam import expand, fold

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


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: other arguments, an activation inside."""

    def __init__(self, channels, act=nn.ReLU, **kwargs):
        super().__init__(channels, **kwargs)
        self.act = act()

    def forward(self, x):
        return self.act(super().forward(x))


class OffsetNorm(nn.BatchNorm2d):
    """Gamma is stored as an offset from 1; must be made with a name."""

    def __init__(self, name, *, channels):
        super().__init__(channels)
        self.name = name
        nn.init.zeros_(self.weight)

    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, 1 + self.weight, self.bias,
                                        self.training, self.momentum, self.eps)


class SyncNormAct(nn.SyncBatchNorm):
    """As timm's SyncBatchNormAct."""

    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize('norm, kind', [
    (NormAct(6, act=nn.SiLU, eps=0.01, momentum=0.3), nn.BatchNorm2d),
    (OffsetNorm('bn', channels=6), nn.BatchNorm2d),
    (SyncNormAct(6, momentum=0.2), nn.SyncBatchNorm)])
def test_norms_of_branches_are_plain_whatever_the_one_behind_is(norm, kind):
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm).double().eval()
    x = images(9)
    # running statistics on a CPU for SyncBN, too
    before = net(x).detach()
    behind = {'0': '1'}
    for name in ('0', '0.branches.1x1_kxk.conv', '0.branches.kxk.conv'):
        expand(net, name, ['1x1_kxk', '1x1_avg'], behind, gamma=0.5)
    norms = block_norms(net, '0')
    assert {(type(norm_), norm_.eps, norm_.momentum) for norm_ in norms} == {(kind, norm.eps, norm.momentum)}
    assert net[1] is norm and float((net(x) - before).abs().max()) < 1e-9
    fold(net, '0', behind)
    assert float((net(x) - before).abs().max()) < 1e-9


@pytest.mark.parametrize('kind', [NormAct, nn.BatchNorm1d, SyncNormAct])
def test_a_norm_cfg_of_another_class_is_refused(kind):
    with pytest.raises(ValueError, match='norm_cfg must name nn.BatchNorm2d'):
        check_norm(dict(type=kind))


@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN', eps=0.01, momentum=0.2, requires_grad=False)])
def test_norms_that_come_after_a_conversion_are_converted(norm_cfg):
    net = wrapped(SMALL, norm_cfg=norm_cfg)
    net.expand(OP, ['1x1', '1x1_kxk'])
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    before = outputs(net, images())
    net.expand(OP)
    net.expand(f'{OP}.branches.1x1_kxk.conv')
    norms = block_norms(net, OP)
    assert {type(norm) for norm in norms} == {nn.SyncBatchNorm}
    if norm_cfg:
        assert {(norm.eps, norm.momentum, norm.weight.requires_grad) for norm in norms} == {(0.01, 0.2, False)}
    net = revert_sync_batchnorm(net)
    net.expand(f'{OP}.branches.kxk.conv')
    assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in net.modules())
    assert difference(outputs(net, images()), before) < 1e-9
    net.train()
    assert all(torch.isfinite(out).all() for out in net(images()))


def test_sync_norms_of_a_config_are_not_made_where_the_network_s_have_been_reverted():
    net = DyRepBackbone(dict(type='mmseg.ResNetV1c', depth=18, base_channels=8, stem_channels=8,
                             norm_cfg=dict(type='SyncBN')), norm_cfg=dict(type='SyncBN', momentum=0.2))
    net = revert_sync_batchnorm(net).double().train()
    net.expand('layer1.0.conv1')
    assert {(type(norm), norm.momentum) for norm in block_norms(net, 'layer1.0.conv1')} == {(nn.BatchNorm2d, 0.2)}
    assert all(torch.isfinite(out).all() for out in net(images()))
