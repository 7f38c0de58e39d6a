"""MobileNet V1 against the figures of the paper and of its own definition."""
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.dynamics import macs
from mmdyrep.models import MobileNetV1

from ..backbones import difference, images, outputs, plain, wrapped

CFG = dict(type='MobileNetV1', widen_factor=.25, out_indices=(0, 1, 2, 3, 4))


@pytest.mark.parametrize('settings, figures', [
    (None, (0.569, 4.23)), (dict(static=True, space='dbb'), (0.608, 4.34)), (dict(static=True), (0.627, 4.40))])
def test_macs_and_parameters_of_the_paper(settings, figures):
    net = MobileNetV1() if settings is None else DyRepBackbone(dict(type='MobileNetV1'), **settings)
    counted = macs.count(net, torch.zeros(1, 3, 224, 224)).total + 1024 * 1000
    parameters = sum(parameter.numel() for parameter in net.parameters()) + 1024 * 1000 + 1000
    assert (round(counted / 1e9, 3), round(parameters / 1e6, 2)) == figures


def test_layers_are_those_of_the_publication():
    convs = [module for module in MobileNetV1().modules() if isinstance(module, nn.Conv2d)]
    pointwise = [(conv.in_channels, conv.out_channels) for conv in convs if conv.kernel_size == (1, 1)]
    assert pointwise == [(32, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), *[(512, 512)] * 5,
                         (512, 1024), (1024, 1024)]
    depthwise = [conv for conv in convs[1:] if conv.kernel_size == (3, 3)]
    assert all(conv.groups == conv.in_channels == conv.out_channels for conv in depthwise)
    assert [conv.stride[0] for conv in depthwise] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]


def test_shapes_of_stages():
    net = MODELS.build(dict(CFG, in_channels=1))
    assert [tuple(out.shape) for out in net(torch.zeros(2, 1, 64, 64))] == [
        (2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8), (2, 128, 4, 4), (2, 256, 2, 2)]


def test_initial_weights_are_kaiming():
    net = MODELS.build(CFG)
    net.init_weights()
    weight = net.stages[3][1].pointwise.conv.weight
    assert weight.std().item() == pytest.approx((2 / weight.shape[0]) ** .5, rel=.05)


def test_frozen_stages_and_norm_eval():
    net = MobileNetV1(.25, frozen_stages=1, norm_eval=True)
    assert net.train() is net
    frozen = {name.split('.')[1] if name.startswith('stages') else name.split('.')[0]
              for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {'stem', '0', '1'}
    assert not any(module.training for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert net.stages[2].training and not net.stages[1].training


def test_wrapped_expanded_and_fused():
    net = wrapped(CFG)
    before = outputs(net, images(64))
    assert net.candidates()[:2] == ['stem.conv', 'stages.0.0.depthwise.conv'] and len(net.candidates()) == 14
    for name in net.candidates()[:3]:
        net.expand(name)
    assert difference(outputs(net, images(64)), before) < 1e-9
    twin = plain(CFG, seed=1)
    twin.load_state_dict(net.to_plain().state_dict())
    assert difference(outputs(twin, images(64)), before) < 1e-9


def test_norm_cfg():
    net = MobileNetV1(.25, norm_cfg=dict(type='SyncBN', eps=1e-3))
    norms = [module for module in net.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(norms) == 27 and {norm.eps for norm in norms} == {1e-3}


@pytest.mark.parametrize('settings', [dict(out_indices=(5,)), dict(frozen_stages=5)])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        MobileNetV1(**settings)
