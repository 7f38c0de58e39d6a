"""Starting points in classifiers, detectors and segmentors: files that are there, files of the net, wrong ones."""
import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope

from mmdyrep.fileio import write_checkpoint

from ..backbones import difference, images, outputs, unfriendly

BACKBONES = {
    'mmpretrain': dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    'mmdet': dict(type='ResNet', depth=18, base_channels=8, stem_channels=8),
    'mmseg': dict(type='ResNetV1c', depth=18, base_channels=8, stem_channels=8)}
MODELS_OF = {
    'mmpretrain': dict(type='ImageClassifier', neck=dict(type='GlobalAveragePooling'),
                       head=dict(type='LinearClsHead', num_classes=10, in_channels=64)),
    'mmdet': dict(type='RetinaNet', neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5),
                  bbox_head=dict(type='RetinaHead', num_classes=10, in_channels=8, feat_channels=8, stacked_convs=1)),
    'mmseg': dict(type='EncoderDecoder', test_cfg=dict(mode='whole'), decode_head=dict(
        type='FCNHead', in_channels=64, channels=8, num_convs=1, num_classes=10, norm_cfg=dict(type='BN')))}
OP, INNER = 'layer2.0.conv2', 'layer2.0.conv2.branches.1x1_kxk.conv'
LIBRARIES = pytest.mark.parametrize('library', BACKBONES)


def build(library, backbone=None, **settings):
    """A model of the library around its wrapped backbone, in a scope of its own."""
    cfg = Config(dict(MODELS_OF[library], backbone=dict(
        type='DyRepBackbone', backbone=backbone or BACKBONES[library], **settings)))
    with DefaultScope.overwrite_default_scope(library):
        return MODELS.build(cfg)


def source(library, kind):
    """State dict of a wrapped backbone of another initialisation, its outputs and its structure."""
    torch.manual_seed(4)
    net = unfriendly(build(library).backbone, 4)
    if kind == 'augmented':
        net.expand(OP)
        net.expand(INNER, ['1x1_avg'])
        unfriendly(net, 5)
    return net.state_dict(), outputs(net, images().float()), net.structure


@pytest.mark.parametrize('library, way', [
    *((library, way) for library in BACKBONES for way in ('pretrained', 'inner init_cfg')),
    ('mmseg', 'pretrained of the segmentor')])
@pytest.mark.parametrize('kind', ['plain', 'augmented'])
@pytest.mark.parametrize('layout', ['', 'backbone.'])
def test_local_files_give_structure_and_weights(library, way, kind, layout, tmp_path):
    state, wanted, structure = source(library, kind)
    path = str(tmp_path / 'file.pth')
    state = {layout + key: value for key, value in state.items()}
    if layout:
        state['head.fc.bias'] = torch.zeros(10)
    write_checkpoint(path, dict(state_dict=state))
    init = dict(type='Pretrained', checkpoint=path)
    if way == 'pretrained of the segmentor':
        cfg = Config(dict(MODELS_OF[library], pretrained=path, backbone=dict(
            type='DyRepBackbone', backbone=BACKBONES[library])))
        with DefaultScope.overwrite_default_scope(library):
            model = MODELS.build(cfg)
    elif way == 'pretrained':
        model = build(library, pretrained=path)
    else:
        model = build(library, dict(BACKBONES[library], init_cfg=init))
    assert model.backbone.structure == structure
    names = [name for name, _ in model.named_parameters()]
    model.init_weights()
    assert model.backbone.structure == structure and names == [name for name, _ in model.named_parameters()]
    assert difference(outputs(model.backbone, images().float()), wanted) < 1e-5


@LIBRARIES
@pytest.mark.parametrize('path', ['torchvision://resnet18', 'open-mmlab://resnet18_v1c', 'mmcls://vgg11',
                                  'https://example.invalid/weights.pth'])
def test_files_of_the_net_are_asked_for_in_init_weights_not_in_build(library, path, monkeypatch):
    asked = []

    def refuse(url, *args, **kwargs):
        asked.append(url)
        raise OSError('no net')

    monkeypatch.setattr('mmengine.runner.checkpoint.load_url', refuse)
    model = build(library, dict(BACKBONES[library], init_cfg=dict(type='Pretrained', checkpoint=path)))
    assert model.backbone.candidates() and not asked
    # what the library says without the wrapper
    with DefaultScope.overwrite_default_scope(library):
        plain = MODELS.build(dict(BACKBONES[library], init_cfg=dict(type='Pretrained', checkpoint=path)))
    with pytest.raises(OSError) as expected:
        plain.init_weights()
    with pytest.raises(type(expected.value)) as caught:
        model.init_weights()
    assert str(caught.value) == str(expected.value) and len(asked) == 2 and asked[0] == asked[1]


@pytest.fixture
def log():
    """What mmengine's logger writes."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@LIBRARIES
@pytest.mark.parametrize('layout', ['', 'backbone.'])
def test_wrong_file_says_which_keys_do_not_fit(library, layout, tmp_path, log):
    torch.manual_seed(0)
    path = str(tmp_path / 'wrong.pth')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        vgg = MODELS.build(dict(type='mmpretrain.VGG', depth=11, norm_cfg=dict(type='BN')))
    write_checkpoint(path, dict(state_dict={layout + key: value for key, value in vgg.state_dict().items()}))
    build(library, pretrained=path).init_weights()
    text = '\n'.join(log)
    assert 'unexpected key in source state_dict: features.0.conv.weight' in text
    assert 'missing keys in source state_dict' in text and 'layer1.0.conv1.weight' in text
