"""The small configs of Table 5: one backbone through all stages."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.fileio import write_checkpoint

ROOT = Path(__file__).parents[2]
DETECTOR, SEGMENTOR = 'faster-rcnn_r18-w16{}_fpn_b8', 'pspnet_r18-w16-d8{}_b8'
STAGES = ('', '-dyrep-c', '-dyrep-d', '-dyrep-cd')
DOWNSTREAM = [name.format(stage) for name in (DETECTOR, SEGMENTOR) for stage in STAGES]


def config(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / 'small' / f'{name}_fashion-scenes.py')


def built(name: str) -> nn.Module:
    cfg = config(name)
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


@pytest.fixture
def backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three files that the pre-training leaves behind; each has a stem of its own."""
    monkeypatch.setenv('SMALL_CHAIN', str(tmp_path))
    for name, value in (('plain', 1.0), ('dyrep_fused', 2.0), ('dyrep_augmented', 3.0)):
        model = built('dyrep_resnet18-w16_b64')
        if name == 'dyrep_augmented':
            model.backbone.expand('layer1.0.conv2')
            model.backbone.expand('layer2.0.conv1', ['1x1'])
        nn.init.constant_(model.backbone.conv1.weight, value)
        state = model.state_dict() if name == 'dyrep_augmented' else model.backbone.state_dict()
        write_checkpoint(tmp_path / 'backbones' / f'{name}.pth', {'state_dict': state})
    return tmp_path


@pytest.mark.parametrize('name', DOWNSTREAM)
def test_each_stage_starts_from_its_file_with_its_structure(backbones: Path, name: str) -> None:
    model = built(name)
    model.init_weights()
    cd, d = '-cd' in name, '-dyrep-d' in name
    assert torch.all(model.backbone.conv1.weight == (3 if cd else 2 if '-dyrep-c' in name else 1))
    assert isinstance(model.backbone, DyRepBackbone) == (cd or d)
    if cd or d:
        assert list(model.backbone.structure['ops']) == (['layer1.0.conv2', 'layer2.0.conv1'] if cd else [])
    assert ('dyrep' in config(name).default_hooks) == (cd or d)
    assert model.backbone.init_cfg['checkpoint'].startswith(str(backbones))


@pytest.mark.parametrize('name', [DETECTOR.format(''), SEGMENTOR.format('')])
def test_keys_and_shapes_are_those_of_the_pretraining(name: str) -> None:
    shapes = [{key: value.shape for key, value in built(each).backbone.state_dict().items()}
              for each in ('resnet18-w16_b64', name)]
    assert shapes[0] == shapes[1]


def test_twins_differ_in_the_backbone_and_the_hook_alone() -> None:
    for plain, *others in ([name.format(stage) for stage in STAGES] for name in (DETECTOR, SEGMENTOR)):
        wanted = config(plain).to_dict()
        for other in map(config, others):
            found = other.to_dict()
            found['model'].pop('backbone')
            found['default_hooks'].pop('dyrep', None)
            kept = {**wanted, 'model': {key: value for key, value in wanted['model'].items() if key != 'backbone'}}
            assert found == kept
            inner = other.model.backbone.get('backbone', other.model.backbone).to_dict()
            assert {**inner, 'init_cfg': 0} == {**wanted['model']['backbone'], 'init_cfg': 0}


def test_pretrainings_differ_in_the_backbone_and_the_hook_alone() -> None:
    plain, grown = (config(name).to_dict() for name in ('resnet18-w16_b64', 'dyrep_resnet18-w16_b64'))
    assert grown['model']['backbone'] == {'type': 'DyRepBackbone', 'backbone': plain['model']['backbone']}
    grown['model']['backbone'] = plain['model']['backbone']
    assert grown['default_hooks'].pop('dyrep')['type'] == 'DyRepHook'
    assert grown == plain
