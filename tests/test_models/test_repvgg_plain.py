"""RepVGG with its 3x3 branch alone, and the deploy form of RepVGG that it is fused to."""
import copy

import pytest
from mmengine.registry import MODELS

from mmdyrep.models.repvgg_plain import RepVGGPlain

from ..backbones import difference, images, outputs, plain, wrapped

ARCH = dict(num_blocks=[1, 2, 1, 1], width_factor=[.25, .25, .25, .25], group_layer_map={2: 2}, se_cfg=None)
CFG = dict(type='RepVGGPlain', arch=ARCH, out_indices=(1, 3))


def test_keys_are_those_of_the_3x3_branches_of_repvgg():
    theirs = plain(dict(CFG, type='mmpretrain.RepVGG'))
    keys = list(plain(CFG).state_dict())
    assert keys == [key for key in theirs.state_dict() if 'branch_3x3' in key]
    net = MODELS.build(CFG).double()
    assert net.load_state_dict(theirs.state_dict(), strict=False).missing_keys == []


def test_deploy_form_is_that_of_repvgg():
    net = plain(CFG)
    before = outputs(net, images())
    net.switch_to_deploy()
    net.switch_to_deploy()
    assert difference(outputs(net, images()), before) < 1e-9
    for kind in ('mmpretrain.RepVGG', 'RepVGGPlain'):
        twin = MODELS.build(dict(CFG, type=kind, deploy=True)).double()
        twin.load_state_dict(net.state_dict())
        assert difference(outputs(twin, images()), before) < 1e-9


def test_grown_by_dyrep_and_fused():
    net = wrapped(CFG)
    before = outputs(net, images())
    assert net.candidates()[0] == 'stem.branch_3x3.conv' and len(net.candidates()) == 6
    for name in net.candidates():
        assert net.expand(name)
    assert difference(outputs(net, images()), before) < 1e-9
    fused = net.to_plain()
    assert isinstance(fused, RepVGGPlain) and list(fused.state_dict()) == list(plain(CFG).state_dict())
    net.switch_to_deploy()
    twin = MODELS.build(dict(CFG, type='mmpretrain.RepVGG', deploy=True)).double()
    twin.load_state_dict(net.state_dict())
    assert difference(outputs(twin, images()), before) < 1e-9


def test_trains_and_copies():
    net = MODELS.build(dict(CFG, with_cp=True, frozen_stages=1))
    net.train()
    net = copy.deepcopy(net)
    net(images().float())[-1].sum().backward()
    learning = [name for name, parameter in net.named_parameters() if parameter.grad is not None]
    assert learning and all(name.startswith(('stage_2', 'stage_3', 'stage_4')) for name in learning)
    assert not net.stage_1.training and net.stage_2.training


def test_published_width():
    parameters = sum(p.numel() for p in RepVGGPlain('A0', deploy=True).parameters())
    assert parameters == sum(p.numel() for p in MODELS.build(
        dict(type='mmpretrain.RepVGG', arch='A0', deploy=True)).parameters())
    assert sum(p.numel() for p in RepVGGPlain('A0').parameters()) < sum(
        p.numel() for p in MODELS.build(dict(type='mmpretrain.RepVGG', arch='A0')).parameters())


def test_squeeze_and_excitation_is_refused():
    with pytest.raises(ValueError, match="squeeze-and-excitation, got 'D2se'"):
        RepVGGPlain('D2se')
