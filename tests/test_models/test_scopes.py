"""Where the type of a wrapped backbone is looked up."""
import pytest
from mmdet.models import ResNet as DetResNet
from mmdet.registry import MODELS as DET
from mmengine.registry import DefaultScope
from mmpretrain.models import ImageClassifier, ResNet
from mmpretrain.registry import MODELS as PRETRAIN
from mmseg.models import ResNet as SegResNet
from mmseg.registry import MODELS as SEG

from mmdyrep import DyRepBackbone
from mmdyrep.models import settings

from ..backbones import classifier

CFG = dict(type='DyRepBackbone', backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8))


@pytest.mark.parametrize('scope, registry, kind', [
    ('mmpretrain', PRETRAIN, ResNet), ('mmdet', DET, DetResNet), ('mmseg', SEG, SegResNet)])
def test_types_resolve_in_the_current_scope(scope, registry, kind):
    with DefaultScope.overwrite_default_scope(scope):
        net = registry.build(CFG)
    assert isinstance(net, DyRepBackbone) and type(net)._inner_class is kind


def test_backbone_of_another_library_by_its_name():
    with DefaultScope.overwrite_default_scope('mmdet'):
        net = DET.build(dict(CFG, backbone=dict(CFG['backbone'], type='mmpretrain.ResNet')))
    assert type(net)._inner_class is ResNet


@pytest.fixture
def no_library():
    # a Runner of another test may have left its own scope
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


def test_without_a_scope_the_error_says_to_write_the_name_of_the_library(no_library):
    with pytest.raises(KeyError, match="'ResNet' is not in the registry.*type='mmdet.ResNet'.*default_scope"):
        DyRepBackbone(dict(type='ResNet', depth=18))
    with pytest.raises(KeyError, match="type='mmdet.ResNext'"):
        DyRepBackbone(dict(type='mmdetection.ResNext', depth=18))


def test_unknown_type_within_a_backbone_is_not_blamed_on_the_scope(no_library):
    with pytest.raises(KeyError) as caught:
        DyRepBackbone(dict(type='mmpretrain.ResNet', depth=18, norm_cfg=dict(type='BatchNorn')))
    assert 'default_scope' not in str(caught.value)
    with pytest.raises(KeyError, match='must contain the key "type"'):
        DyRepBackbone(dict(depth=18))


def test_inside_a_classifier():
    model = classifier()
    assert isinstance(model, ImageClassifier) and isinstance(model.backbone, DyRepBackbone)
    assert 'backbone.layer1.0.conv1.weight' in model.state_dict()


def test_a_type_of_a_library_that_is_missing_says_so(monkeypatch):
    monkeypatch.setattr(settings, 'is_there', lambda module: module != 'mmdet')
    with pytest.raises(KeyError, match='NoSuchNet.* is of a library that is missing: mmdet is not installed'):
        DyRepBackbone(dict(type='mmdet.NoSuchNet'))
