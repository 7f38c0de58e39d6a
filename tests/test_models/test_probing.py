"""Inputs of the probe: channels and sizes that a backbone takes."""
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.models.probing import input_shapes, probe_backbone, zeros

from ..backbones import SMALL, difference, images, outputs, wrapped


def test_one_channel():
    net = wrapped(dict(SMALL, in_channels=1))
    before = outputs(net, images(28, channels=1))
    net.expand('conv1')
    assert difference(outputs(net, images(28, channels=1)), before) < 1e-9
    assert input_shapes(net)[0] == (1, 128, 128)


def test_focus_stem_takes_other_channels_than_its_first_convolution():
    net = wrapped(dict(type='mmdet.CSPDarknet', arch='P5', deepen_factor=0.33, widen_factor=0.125))
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 12 and 'stem.conv.conv' in net.candidates()
    before = outputs(net, images(64))
    net.expand('stem.conv.conv')
    assert difference(outputs(net, images(64)), before) < 1e-9


@pytest.mark.parametrize('wanted, shapes', [
    (None, [(3, 128, 128), (1, 128, 128), (3, 224, 224), (1, 224, 224)]),
    ((32, 48), [(3, 32, 48), (1, 32, 48)]),
    ((5, 32, 48), [(5, 32, 48)]),
])
def test_shapes_tried(wanted, shapes):
    assert input_shapes(MODELS.build(SMALL), wanted) == shapes


class FixedSize(nn.Module):
    """Takes images of 4 channels and 40x40 alone, a convolution with 2 channels at first."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 40 * 40, 3)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x[:, :2] + x[:, 2:4])).flatten(1))


def test_input_shape_reaches_a_network_of_fixed_size():
    # of all the errors that of the likeliest shape, here with 2 channels
    with pytest.raises(RuntimeError, match=r'FixedSize could not be probed.*input_shape=\(C, H, W\).*'
                                           r'The size of tensor a \(2\) must match'):
        DyRepBackbone(FixedSize()).candidates()
    for shape in ((4, 40, 40), [4, 40, 40]):
        net = DyRepBackbone(FixedSize(), input_shape=shape)
        assert net.candidates() == ['conv'] and net.input_shape == (4, 40, 40)
    assert DyRepBackbone(SMALL, input_shape=32).input_shape == (32, 32)


def test_probe_input_has_the_dtype_of_the_model():
    model = MODELS.build(SMALL).double()
    x = zeros(model, (3, 8, 8))
    assert x.dtype == torch.float64 and x.shape == (1, 3, 8, 8) and not x.requires_grad
    assert probe_backbone(model).ops['layer1.0.conv1'] == 'layer1.0.bn1'


@pytest.mark.parametrize('exclude', [('conv1', 'layer1'), ['conv1', 'layer1']])
def test_excluded_names_and_leading_parts_are_no_candidates(exclude):
    net = wrapped(SMALL, exclude=exclude)
    assert net.skipped()['conv1'] == net.skipped()['layer1.0.conv1'] == 'excluded'
    # a leading part is a whole word: `conv1` says nothing about `layer2.0.conv1`
    assert net.candidates()[0] == 'layer2.0.conv1'
    static = DyRepBackbone(SMALL, static=True, exclude=exclude)
    assert list(static.structure['ops']) == net.candidates()


def test_exclude_reaches_into_blocks():
    net = wrapped(SMALL, exclude=('layer1.0.conv1.branches.1x1_kxk',))
    net.expand('layer1.0.conv1')
    inner = 'layer1.0.conv1.branches.{}.conv'
    assert net.skipped()[inner.format('1x1_kxk')] == 'excluded' and inner.format('kxk') in net.candidates()


class TwoImages(nn.Module):
    """Compares two images."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.joint, self.joint_bn = nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, first, second):
        pair = [torch.relu(self.bn(self.conv(first))), torch.relu(second.mean(1, keepdim=True).expand(-1, 4, -1, -1))]
        return self.head(self.joint_bn(self.joint(torch.cat(pair, 1))))


class OfDict(TwoImages):

    def forward(self, inputs, *, scale):
        return super().forward(inputs['left'], inputs['right'][0]) * scale


PAIR = images(16, batch=5).float(), images(16, batch=5).float()


@pytest.mark.parametrize('kind, args, kwargs', [
    (TwoImages, PAIR, {}),
    (TwoImages, PAIR[:1], dict(second=PAIR[1])),
    (TwoImages, (), dict(first=PAIR[0], second=PAIR[1])),
    (OfDict, (dict(left=PAIR[0], right=[PAIR[1]]),), dict(scale=2)),
    (OfDict, (dict(left=PAIR[0], right=[PAIR[1]]),), dict(scale=torch.rand(5, 1, 1, 1))),
])
def test_inputs_that_no_shape_tells_are_refused_with_the_right_advice_and_shown_by_hand(kind, args, kwargs):
    torch.manual_seed(0)
    net = DyRepBackbone(kind())
    with pytest.raises(RuntimeError, match='which no input_shape provides.*probe_with') as refusal:
        net.candidates()
    assert 'give the shape' not in str(refusal.value)
    net.probe_with(*args, **kwargs)
    assert net.candidates() == ['conv', 'joint', 'head']
    net.eval()
    before = net(*args, **kwargs)
    net.expand('joint')
    net.expand('head')
    assert difference((net(*args, **kwargs),), (before,)) < 1e-4
    with pytest.raises(ValueError, match='before any op is expanded'):
        net.probe_with(*args, **kwargs)
