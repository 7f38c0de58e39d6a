"""VGG with a width factor against mmpretrain's VGG and the paper's figures."""
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models import VGG

from mmdyrep import DyRepBackbone
from mmdyrep.models.vgg_cifar import VGG_CIFAR

from ..backbones import difference, images, outputs, unfriendly


def with_head(backbone):
    cfg = dict(
        type='mmpretrain.ImageClassifier', data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'),
        backbone=backbone, neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.StackedLinearClsHead', num_classes=10, in_channels=512, mid_channels=[512]))
    # a Runner of another test may have left its own scope
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(cfg)


def test_vgg16_with_its_head_has_the_parameters_and_macs_of_the_paper():
    from mmdyrep.dynamics import macs
    model = with_head(dict(type='VGG_CIFAR'))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 14.99
    backbone = macs.count(model.backbone, torch.zeros(1, 3, 32, 32)).total
    assert round((backbone + 512 * 512 + 512 * 10) / 1e6, 1) == 313.5


@pytest.mark.parametrize('depth', [11, 13, 16, 19])
def test_full_width_is_the_vgg_of_mmpretrain(depth):
    theirs = unfriendly(VGG(depth, norm_cfg=dict(type='BN'))).double()
    ours = VGG_CIFAR(depth).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, VGG) and ours.range_sub_modules == theirs.range_sub_modules
    for indices in ((4,), (0, 2, 4)):
        ours.out_indices = theirs.out_indices = indices
        assert difference(outputs(ours, images()), outputs(theirs, images())) == 0


def test_same_initial_weights_as_mmpretrain():
    states = []
    for build in (lambda: VGG(11, norm_cfg=dict(type='BN')), lambda: VGG_CIFAR(11)):
        torch.manual_seed(0)
        model = build()
        model.init_weights()
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize('factor, widths', [
    (1, [64, 128, 256, 512, 512]), (.25, [16, 32, 64, 128, 128]), (.125, [8, 16, 32, 64, 64]),
    (2, [128, 256, 512, 1024, 1024]), (.001, [1, 1, 1, 1, 1])])
def test_widths(factor, widths):
    net = VGG_CIFAR(11, widen_factor=factor, in_channels=1, out_indices=range(5))
    shapes = [tuple(out.shape) for out in net(torch.zeros(2, 1, 32, 32))]
    assert shapes == [(2, width, 16 // 2**stage, 16 // 2**stage) for stage, width in enumerate(widths)]


def test_frozen_stages_and_norm_eval_as_in_mmpretrain():
    settings = dict(frozen_stages=2, norm_eval=True)
    theirs, ours = VGG(11, norm_cfg=dict(type='BN'), **settings), VGG_CIFAR(11, **settings)
    theirs.train()
    ours.train()
    learning = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert learning and learning != set(dict(ours.named_parameters()))
    assert not any(module.training for module in ours.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_wrapped_and_expanded():
    net = DyRepBackbone(dict(type='VGG_CIFAR', depth=16, widen_factor=.125, init_cfg=None), static=True, space='dbb')
    unfriendly(net).double()
    assert len(net.structure['ops']) == 13
    before = outputs(net, images())
    assert difference(outputs(net.to_plain(), images()), before) < 1e-9


def test_unknown_depth():
    with pytest.raises(ValueError, match=r'one of \[11, 13, 16, 19\], got 12'):
        VGG_CIFAR(12)
