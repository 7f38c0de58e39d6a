"""The plain config is that of the training less what is DyRep's."""
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdyrep import DyRepBackbone, DyRepHook
from mmdyrep.deploy import plain_config

from ..runs import ROOT

REPVGG = dict(type='RepVGG', arch='A0', in_channels=3)


def of(model, **others):
    init_default_scope('mmpretrain')
    return plain_config(Config(dict(model=model, default_scope='mmpretrain', **others)))


def test_equals_the_hand_written_twin(cfg):
    before = cfg.pretty_text
    plain = plain_config(cfg)
    twin = Config.fromfile(ROOT / 'configs' / 'small' / 'resnet18-w8_b64_fashion-mnist.py')
    # what only a training of this package has
    del twin.default_hooks['random_state']
    twin.pop('custom_imports')
    twin.pop('dyrep_hook')
    twin['load_from'], twin['resume'] = None, False
    assert plain.to_dict() == twin.to_dict()
    assert cfg.pretty_text == before


def test_backbone_is_found_wherever_it_stands_and_however_it_is_named():
    inner = dict(type='ResNet', depth=18)
    for name in ('DyRepBackbone', 'mmdyrep.DyRepBackbone', DyRepBackbone):
        wrapped = dict(type=name, backbone=inner, static=True)
        assert of(dict(type='A', backbone=wrapped)).model.backbone == inner
        assert of(dict(type='A', teacher=[dict(net=wrapped)])).model.teacher[0].net == inner


def test_deploy_form_of_a_backbone_that_has_one():
    assert of(dict(backbone=dict(type='DyRepBackbone', backbone=REPVGG))).model.backbone == dict(REPVGG, deploy=True)
    large = dict(type='RepLKNet', arch='31B')
    assert of(dict(backbone=dict(type='DyRepBackbone', backbone=large))).model.backbone == dict(
        large, small_kernel_merged=True)


def test_other_hooks_and_imports_stay():
    cfg = of(dict(backbone=dict(type='DyRepBackbone', backbone=dict(type='VGG_CIFAR'))),
             custom_imports=dict(imports=['mmdyrep', 'mine']),
             default_hooks=dict(dyrep=dict(type='DyRepHook'), timer=dict(type='IterTimerHook')),
             custom_hooks=[dict(type=DyRepHook), dict(type='EMAHook')], shared=dict(type='DyRepHook', interval=3))
    assert cfg.default_hooks == dict(timer=dict(type='IterTimerHook'))
    assert cfg.custom_hooks == [dict(type='EMAHook')] and 'shared' not in cfg
    # VGG_CIFAR is of this package
    assert cfg.custom_imports.imports == ['mmdyrep', 'mine']
    rest = of(dict(backbone=dict(type='DyRepBackbone', backbone=REPVGG)),
              custom_imports=dict(imports=['mmdyrep', 'mine']))
    assert rest.custom_imports.imports == ['mine']


@pytest.mark.parametrize('model, number', [(dict(backbone=REPVGG), 'no'), (dict(
    a=dict(type='DyRepBackbone', backbone=REPVGG), b=dict(type='DyRepBackbone', backbone=REPVGG)), '2')])
def test_none_or_several_backbones_are_refused(model, number):
    with pytest.raises(ValueError, match=f'{number} DyRepBackbone'):
        of(model)
