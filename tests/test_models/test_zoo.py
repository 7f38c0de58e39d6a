"""Backbones of the three libraries: expanded, nested, fused, loaded by the plain one, outputs as before."""
import copy
import random

import pytest
import torch
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.dynamics.calibration import tensors_in
from mmdyrep.reparam import Block

from ..backbones import difference, images, unfriendly
from ..runs import ROOT
from ..zoo import DEPLOY, ZOO, rows

# those that DyRep can't do anything for, and why
NONE = {'EfficientNet': 'Conv2dAdaptivePadding is more than a plain convolution',
        'ResNet, GroupNorm': 'no batch norm reads its output alone'}
# those of millions of parameters
LARGE = ('Darknet', 'CSPDarkNet', 'SSDVGG', 'VGG', 'CSPResNet', 'InceptionV3', 'BiSeNetV1', 'ICNet', 'PoolFormer')


@torch.no_grad()
def outputs(model, x):
    model.eval()
    return tuple(tensors_in(model(x)))


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in ZOO if name not in NONE])
def test_expanded_nested_fused_and_loaded_by_the_plain_backbone(name):
    entry = ZOO[name]
    net = entry.wrapped()
    net.init_weights()
    for module in net.modules():
        if type(module).__name__ == 'TridentConv':
            nn.init.kaiming_normal_(module.weight)  # mmdet leaves it as the memory was
    unfriendly(net).to(entry.dtype)
    shape = net.input_shape or ()
    x = images(entry.size, shape[0] if len(shape) == 3 else 3).to(entry.dtype)
    before, candidates = outputs(net, x), net.candidates()
    assert list(net.state_dict()) == list(entry.plain().state_dict())
    assert all(out.isfinite().all() and out.abs().max() > 0 for out in before)

    for op in random.Random(0).sample(candidates, min(3, len(candidates))):
        assert net.expand(op)
    nested = [op for op in net.candidates() if op not in candidates]
    assert nested and net.expand(nested[0])
    tolerance = 1e-9 if entry.dtype == torch.float64 else 1e-4
    assert difference(outputs(net, x), before) < tolerance

    # as training might change the blocks
    before = outputs(unfriendly(net, 1), x)
    twin = entry.plain().to(entry.dtype)
    twin.load_state_dict(net.to_plain().state_dict(), strict=True)
    assert difference(outputs(twin, x), before) < tolerance

    if entry.cfg['type'] in DEPLOY:
        # their own fusing makes float32 tensors
        net, x, tolerance = net.float(), x.float(), 1e-4
    net.switch_to_deploy()
    assert not any(isinstance(module, Block) for module in net.modules())
    twin = entry.plain(deploy=True).to(x.dtype)
    twin.load_state_dict(net.state_dict(), strict=True)
    for fused in (net, twin):
        assert difference(outputs(fused, x), before) < tolerance


@pytest.mark.parametrize('name, reason', NONE.items())
def test_backbone_without_an_op_that_can_be_expanded_says_why(name, reason):
    net = ZOO[name].wrapped()
    assert net.candidates() == []
    assert any(reason in why for why in net.skipped().values()) and reason in net.why_none()
    with pytest.raises(ValueError, match=f'no op can be expanded: .*{reason}'):
        ZOO[name].wrapped(static=True)
    op = next(op for op, why in net.skipped().items() if reason in why)
    with pytest.raises(ValueError, match=f'{op} can not be expanded: {reason}'):
        net.expand(op)


@pytest.mark.parametrize('name, op, reason', [
    ('ResNet, deformable', 'layer2.0.conv2', 'ModulatedDeformConv2dPack is no plain convolution'),
    ('TridentResNet', 'layer3.0.conv2', 'TridentConv is no plain convolution'),
    ('DetectoRS_ResNet', 'layer1.0.conv2', 'ConvAWS2d is more than a plain convolution'),
    ('DetectoRS_ResNet', 'layer2.0.conv2', 'SAConv2d is more than a plain convolution'),
    ('DenseNet', 'stages.0.block.0.conv2', 'no batch norm reads its output alone'),
    ('ResNet (mmdet)', 'layer1.0.conv1', 'frozen'),
])
def test_convolutions_of_other_kinds_are_named_with_the_reason(name, op, reason):
    assert ZOO[name].wrapped().skipped().get(op, '').startswith(reason)


def test_transposed_convolution_is_named():
    net = DyRepBackbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3)))
    assert net.skipped() == {'1': 'ConvTranspose2d is no plain convolution'}
    assert copy.deepcopy(net).candidates() == ['0']


def test_table_in_the_docs_is_that_of_the_code():
    page = (ROOT / 'docs' / 'backbones.md').read_text().splitlines()
    start = page.index('| backbone | library | can be expanded | the others |')
    assert page[start:start + len(ZOO) + 2] == rows()
