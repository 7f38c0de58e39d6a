"""HRNet calls its parallel streams `branches`, as blocks call theirs."""
import pytest
import torch
from mmpretrain.models import HRNet
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.reparam import depth_of, ops_in_keys
from mmdyrep.reparam.structure import root_of

STREAM = 'stage2.0.branches.1.0.conv1'


def stage(kind, blocks, *channels):
    return dict(num_modules=1, num_branches=len(channels), block=kind, num_blocks=(blocks, ) * len(channels),
                num_channels=channels)


EXTRA = dict(stage1=stage('BOTTLENECK', 1, 8), stage2=stage('BASIC', 1, 4, 8), stage3=stage('BASIC', 1, 4, 8, 8),
             stage4=stage('BASIC', 1, 4, 8, 8, 8))


@pytest.fixture
def small_hrnet():
    def make():
        torch.manual_seed(0)
        net = DyRepBackbone(HRNet(extra=EXTRA))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 2)
        return net.double().eval()
    return make


def test_names_of_streams_are_no_blocks():
    nested = f'{STREAM}.branches.1x1_kxk.conv'
    assert [depth_of(name) for name in (STREAM, nested, f'{nested}.branches.kxk.conv')] == [0, 1, 2]
    assert root_of(STREAM) == root_of(nested) == root_of(f'{nested}.branches.1x1.bn.weight') == STREAM
    assert ops_in_keys([f'{STREAM}.branches.1x1.bn.weight', 'x.branches.0.conv.weight']) == {STREAM: ['1x1']}


def test_streams_expand_load_and_fuse(small_hrnet):
    net, x = small_hrnet(), torch.rand(1, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        before = net(x)
        net.expand(STREAM)
        net.expand(f'{STREAM}.branches.1x1_kxk.conv', ['1x1_avg'])
        other = small_hrnet()
        other.load_state_dict(net.state_dict())
        plain = net.to_plain()
        assert other.structure == net.structure and len(net.structure['ops']) == 2
        assert not any('kxk' in key for key in plain.state_dict())
        for form in (net, other, plain):
            for out, expected in zip(form(x), before):
                torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
