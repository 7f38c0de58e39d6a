"""What a backbone starts from: static spaces, structures, initial weights and pretrained files."""
import io
import json
import logging

import pytest
import torch
import torchvision.models as zoo
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS

from mmdyrep import DyRepBackbone
from mmdyrep.fileio import write_checkpoint, write_json
from mmdyrep.reparam import SPACES, StructureError, blocks_of

from ..backbones import SMALL, classifier, difference, images, outputs, plain, unfriendly, wrapped

OP = 'layer1.0.conv2'
INNER = f'{OP}.branches.kxk.conv'
STRUCTURE = {'version': 1, 'ops': {OP: ['kxk', '1x1', '1x1_kxk'], INNER: ['kxk', 'residual']}}


def gammas(net):
    return {round(value, 6) for block in blocks_of(net).values() for name in block.added
            for value in block.branches[name].bn.weight.tolist()}


# ---------------------------------------------------------------------- static, structure

@pytest.mark.parametrize('space', ['repvgg', 'dbb', 'dyrep', ['1x1', 'kx1']])
def test_static_expands_every_op_one_level_deep_with_gamma_and_scale_of_1(space):
    net = DyRepBackbone(SMALL, space=space, static=True)
    ops = DyRepBackbone(SMALL).candidates()
    assert sorted(net.structure['ops']) == sorted(ops)
    names = SPACES.get(space, ('kxk', '1x1', 'kx1')) if isinstance(space, str) else ('kxk', '1x1', 'kx1')
    assert net.structure['ops'][OP] == list(names)
    assert 'residual' not in net.structure['ops']['layer2.0.conv1']
    assert gammas(net) == {1.0}
    assert all(torch.equal(block.scale, torch.ones_like(block.scale)) for block in blocks_of(net).values())
    net.init_weights()
    assert gammas(net) == {1.0}


def test_static_keeps_the_function_of_the_backbone_it_is_given():
    inner = plain(SMALL)
    before = outputs(inner, images())
    assert difference(outputs(DyRepBackbone(inner, static=True), images()), before) < 1e-9


@pytest.mark.parametrize('as_file', [False, True])
def test_structure_as_dict_or_file(tmp_path, as_file):
    structure = STRUCTURE
    if as_file:
        structure = tmp_path / 'structure.json'
        write_json(structure, STRUCTURE)
        structure = str(structure)
    net = DyRepBackbone(SMALL, structure=structure)
    assert net.structure == STRUCTURE and list(net.structure['ops']) == [OP, INNER]
    assert gammas(net) == {0.01}
    assert MODELS.build(dict(type='DyRepBackbone', backbone=SMALL, structure=structure)).structure == STRUCTURE


@pytest.mark.parametrize('structure, message', [
    ({'version': 1, 'ops': {'layer9.conv': ['kxk', '1x1']}}, 'layer9.conv: the network has no convolution'),
    ({'version': 1, 'ops': {'layer2.0.downsample.0': ['kxk', '1x1']}}, 'layer2.0.downsample.0: kernel 1x1'),
    ({'version': 1, 'ops': {INNER: ['kxk', '1x1']}}, 'lies in branch'),
    ({OP: ['kxk', '1x1']}, "a structure is a dict {'version'"),
])
def test_structures_that_do_not_fit(structure, message):
    with pytest.raises(StructureError, match=message):
        DyRepBackbone(SMALL, structure=structure)


def test_broken_or_missing_structure_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        DyRepBackbone(SMALL, structure=str(tmp_path / 'none.json'))
    (tmp_path / 'cut.json').write_text(json.dumps(STRUCTURE)[:-5])
    with pytest.raises(ValueError, match='cut.json is not a JSON file'):
        DyRepBackbone(SMALL, structure=str(tmp_path / 'cut.json'))


# ---------------------------------------------------------------------- init_weights

@pytest.mark.parametrize('cfg', [
    SMALL, dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8),
    dict(type='mmpretrain.VGG', depth=11, norm_cfg=dict(type='BN')),
    dict(type='mmpretrain.MobileNetV2', widen_factor=.25)], ids=lambda cfg: cfg['type'])
@pytest.mark.parametrize('asked', [False, True])
def test_unexpanded_wrapper_is_initialised_as_the_plain_backbone(cfg, asked):
    states = []
    for wrap in (False, True):
        torch.manual_seed(5)
        model = MODELS.build(dict(type='DyRepBackbone', backbone=cfg) if wrap else cfg)
        if wrap and asked:
            model.candidates()
        model.init_weights()
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize('inside', [False, True])
def test_branches_of_a_structure_start_with_gamma_init_after_init_weights(inside):
    cfg = dict(type='DyRepBackbone', backbone=SMALL, structure=STRUCTURE, gamma_init=0.03)
    model = classifier(**cfg) if inside else MODELS.build(cfg)
    net = model.backbone if inside else model
    weights = net.get_submodule(f'{OP}.branches.1x1.conv').weight.clone()
    model.init_weights()
    assert gammas(net) == {0.03}
    assert all(value == 1 for block in blocks_of(net).values() for value in block.origin.bn.weight.tolist())
    assert not torch.equal(net.get_submodule(f'{OP}.branches.1x1.conv').weight, weights)
    assert not any(hasattr(module, '_params_init_info') for module in model.modules())


def test_second_init_weights_changes_nothing():
    net = DyRepBackbone(SMALL, structure=STRUCTURE)
    net.init_weights()
    unfriendly(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_init_weights_of_a_network_that_has_none_changes_nothing():
    net = unfriendly(DyRepBackbone(zoo.resnet18(), structure=STRUCTURE))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not hasattr(net, 'init_cfg')


# ---------------------------------------------------------------------- files

def source(kind):
    """State dict of a backbone of this kind, and the outputs that it shall give."""
    net = wrapped(SMALL, seed=3)
    if kind == 'augmented':
        net.load_structure(STRUCTURE)
        unfriendly(net, 4)
    return net.state_dict(), outputs(net, images()), net.structure


def settings_of(way, path):
    return {
        'pretrained': dict(pretrained=path),
        'init_cfg': dict(init_cfg=dict(type='Pretrained', checkpoint=path)),
        'inner': dict(backbone=dict(SMALL, init_cfg=dict(type='Pretrained', checkpoint=path))),
        'list': dict(init_cfg=[dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer='_BatchNorm'),
                               ConfigDict(type=PretrainedInit, checkpoint=path)]),
    }[way]


@pytest.mark.parametrize('way', ['pretrained', 'init_cfg', 'inner', 'list'])
@pytest.mark.parametrize('layout', ['bare', 'state_dict', 'backbone.', 'module.', 'module.backbone.'])
@pytest.mark.parametrize('kind', ['plain', 'augmented'])
def test_pretrained_files_of_every_layout(tmp_path, way, layout, kind):
    state, wanted, structure = source(kind)
    if layout.endswith('.'):
        state = {f'{layout}{key}': value for key, value in state.items()}
    if layout.endswith('backbone.'):
        state[layout.replace('backbone.', 'head.fc.bias')] = torch.zeros(10)
    path = str(tmp_path / 'file.pth')
    torch.save(state if layout == 'bare' else dict(state_dict=state, meta=dict(epoch=3)), path)
    net = MODELS.build(dict(dict(type='DyRepBackbone', backbone=SMALL), **settings_of(way, path)))
    # known before the optimizer is built
    assert net.structure == structure
    net.double().init_weights()
    assert net.structure == structure
    assert difference(outputs(net, images()), wanted) < 1e-9


@pytest.mark.parametrize('kind', ['plain', 'augmented'])
def test_pretrained_file_in_a_classifier_whose_init_weights_is_called(tmp_path, kind):
    state, wanted, structure = source(kind)
    path = str(tmp_path / 'file.pth')
    write_checkpoint(path, dict(state_dict={f'backbone.{key}': value for key, value in state.items()}))
    model = classifier(pretrained=path)
    names = [name for name, _ in model.named_parameters()]
    model.init_weights()
    assert [name for name, _ in model.named_parameters()] == names
    assert model.backbone.structure == structure
    assert difference(outputs(model.backbone, images()), wanted) < 1e-9


def test_file_that_appears_after_the_build_brings_its_structure_in_init_weights(tmp_path):
    path = str(tmp_path / 'later.pth')
    model = classifier(pretrained=path)
    with pytest.raises(FileNotFoundError, match='later.pth'):
        model.backbone.init_weights()
    state, wanted, structure = source('augmented')
    write_checkpoint(path, dict(state_dict=state))
    model = classifier()
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
    assert not model.backbone.structure['ops']
    model.init_weights()
    assert model.backbone.structure == structure
    assert difference(outputs(model.backbone, images()), wanted) < 1e-9


@pytest.mark.parametrize('settings', [dict(static=True), dict(structure=STRUCTURE)])
def test_plain_pretrained_file_keeps_the_structure_with_the_function_of_the_file(tmp_path, settings):
    state, wanted, _ = source('plain')
    path = str(tmp_path / 'plain.pth')
    torch.save(state, path)
    net = DyRepBackbone(SMALL, pretrained=path, **settings).double()
    structure = net.structure
    net.init_weights()
    assert net.structure == structure and structure['ops']
    assert difference(outputs(net, images()), wanted) < 1e-9


def test_given_prefix_is_heeded(tmp_path):
    state, wanted, structure = source('augmented')
    path = str(tmp_path / 'detector.pth')
    other = {f'backbone.{key}': torch.zeros_like(value) for key, value in plain(SMALL).state_dict().items()}
    torch.save({**{f'teacher.net.{key}': value for key, value in state.items()}, **other}, path)
    net = DyRepBackbone(SMALL, init_cfg=dict(type='Pretrained', checkpoint=path, prefix='teacher.net')).double()
    assert net.structure == structure
    net.init_weights()
    assert difference(outputs(net, images()), wanted) < 1e-9


def test_network_with_a_part_called_backbone_loads_its_own_files(tmp_path):
    def build():
        torch.manual_seed(0)
        return zoo.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=2)

    net = DyRepBackbone(build())
    net.expand('backbone.layer1.0.conv2', ['1x1'])
    torch.save(net.state_dict(), tmp_path / 'fcn.pth')
    other = DyRepBackbone(build(), pretrained=str(tmp_path / 'fcn.pth'))
    assert other.structure == net.structure
    other.init_weights()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in other.state_dict().items())


def test_torchvision_network_takes_pretrained_files(tmp_path):
    torch.save(unfriendly(zoo.resnet18()).state_dict(), tmp_path / 'r18.pth')
    net = DyRepBackbone(zoo.resnet18(), pretrained=str(tmp_path / 'r18.pth'))
    net.init_weights()
    saved = torch.load(tmp_path / 'r18.pth', weights_only=False)
    assert all(torch.equal(value, saved[key]) for key, value in net.state_dict().items())


def test_wrong_files_say_what_does_not_fit(tmp_path):
    wrong = wrapped(dict(type='mmpretrain.VGG', depth=11, norm_cfg=dict(type='BN')))
    torch.save(wrong.state_dict(), tmp_path / 'vgg.pth')
    net = DyRepBackbone(SMALL, pretrained=str(tmp_path / 'vgg.pth'))
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    MMLogger.get_current_instance().addHandler(handler)
    try:
        net.init_weights()
    finally:
        MMLogger.get_current_instance().removeHandler(handler)
    text = written.getvalue()
    assert 'features.0.conv.weight' in text and 'missing keys' in text and 'layer1.0.conv1.weight' in text

    wrong.expand('features.0.conv', ['1x1'])
    torch.save(wrong.state_dict(), tmp_path / 'augmented_vgg.pth')
    with pytest.raises(StructureError, match='block at features.0.conv.*another architecture'):
        DyRepBackbone(SMALL, pretrained=str(tmp_path / 'augmented_vgg.pth'))

    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'vgg.pth').read_bytes()[:2000])
    with pytest.raises(ValueError, match='cut.pth can not be read as a checkpoint'):
        DyRepBackbone(SMALL, pretrained=str(tmp_path / 'cut.pth'))


def test_missing_file_fails_in_init_weights_not_in_build(tmp_path):
    for settings in (dict(pretrained='gone.pth'), dict(init_cfg=dict(type='Pretrained', checkpoint='gone.pth'))):
        net = DyRepBackbone(SMALL, **settings)
        with pytest.raises(FileNotFoundError, match='gone.pth'):
            net.init_weights()
