"""Frozen stages and frozen statistics, on the backbones of mmpretrain, mmdet and mmseg."""
import pytest
import torch
from mmengine.registry import MODELS

from mmdyrep import DyRepBackbone

from ..backbones import block_norms, difference, images, outputs, unfriendly, wrapped

MMDET = dict(type='mmdet.ResNet', depth=18, base_channels=8, stem_channels=8, norm_eval=True, frozen_stages=1)
MMSEG = dict(type='mmseg.ResNetV1c', depth=18, base_channels=8, stem_channels=8, num_stages=4, strides=(1, 2, 1, 1),
             dilations=(1, 1, 2, 4), norm_eval=True, frozen_stages=1)
MMPRETRAIN = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8, norm_eval=True,
                  frozen_stages=1)
CONFIGS = pytest.mark.parametrize('cfg', [MMDET, MMSEG, MMPRETRAIN], ids=lambda cfg: cfg['type'])


@CONFIGS
def test_frozen_ops_are_no_candidates_but_can_be_expanded_by_name(cfg):
    net = wrapped(cfg)
    net.train()
    first = 'stem.0' if cfg is MMSEG else 'conv1'
    assert net.skipped()[first] == net.skipped()['layer1.0.conv1'] == 'frozen'
    assert net.candidates()[0] == 'layer2.0.conv1'
    before = outputs(net, images())
    net.expand('layer1.0.conv1')
    net.train()
    assert not any(parameter.requires_grad for parameter in net.layer1.parameters())
    assert net.skipped()['layer1.0.conv1.branches.kxk.conv'] == 'frozen'
    assert difference(outputs(net, images()), before) < 1e-9


@CONFIGS
def test_norms_of_a_block_follow_frozen_statistics_and_training_starts_where_it_was(cfg):
    net = wrapped(cfg)
    net.train()
    x, ops = images(), ['layer2.0.conv1', 'layer3.1.conv2']
    before = tuple(out.detach() for out in net(x))
    for name in ops:
        net.expand(name)
        net.expand(f'{name}.branches.1x1_kxk.conv')
        net.expand(f'{name}.branches.kxk.conv', ['1x1'])
    for _ in range(2):
        assert all(not norm.training for name in ops for norm in block_norms(net, name))
        assert net.get_submodule(ops[0]).training
        assert difference(tuple(out.detach() for out in net(x)), before) < 1e-9
        net.eval()
        net.train()
    net(x)[-1].square().mean().backward()
    gammas = [norm.weight.grad for name in ops for norm in block_norms(net, name)]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gammas)


@pytest.mark.parametrize('op', ['conv1', 'conv1.branches.kxk.conv'])
def test_block_in_a_frozen_stem_follows_the_norm_that_alone_is_put_into_eval_mode(op):
    # mmdet's ResNet freezes its stem by `norm1.eval()`, which says nothing about norms within `conv1`
    net = wrapped(dict(MMDET, norm_eval=False, frozen_stages=0))
    net.expand('conv1')
    net.train()
    if op != 'conv1':
        net.expand(op)
    assert not net.bn1.training and net.layer1[0].bn1.training
    assert not any(norm.training for norm in block_norms(net, 'conv1'))
    before = {key: value.clone() for key, value in net.conv1.state_dict().items()}
    net(images())
    assert all(torch.equal(value, before[key]) for key, value in net.conv1.state_dict().items())


def test_without_norm_eval_the_norms_of_a_block_learn_their_statistics():
    net = wrapped(dict(MMDET, norm_eval=False))
    net.train()
    net.expand('layer2.0.conv1')
    norms = block_norms(net, 'layer2.0.conv1')
    means = [norm.running_mean.clone() for norm in norms]
    net(images())
    assert all(norm.training for norm in norms)
    assert all(not torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, means))


def test_dilated_ops_of_a_segmentation_backbone_keep_their_function():
    net = wrapped(dict(MMSEG, norm_eval=False, frozen_stages=-1))
    before = outputs(net, images(64))
    assert net.layer4[1].conv1.dilation == (4, 4)
    for name in ('stem.0', 'layer3.0.conv2', 'layer4.0.conv1', 'layer4.1.conv1'):
        assert net.expand(name)
    assert difference(outputs(net, images(64)), before) < 1e-9
    fused = MODELS.build(MMSEG).double()
    fused.load_state_dict(net.to_plain().state_dict())
    assert difference(outputs(fused, images(64)), before) < 1e-9


def test_frozen_stages_of_the_plain_backbone_stay_the_only_frozen_parameters():
    torch.manual_seed(0)
    inner, net = MODELS.build(MMDET), DyRepBackbone(MMDET)
    for model in (inner, net):
        unfriendly(model).train()
    assert {name: p.requires_grad for name, p in net.named_parameters()} == \
        {name: p.requires_grad for name, p in inner.named_parameters()}
    assert {name: m.training for name, m in net.named_modules()} == \
        {name: m.training for name, m in inner.named_modules()}
    assert net.train() is net and net.eval() is net
