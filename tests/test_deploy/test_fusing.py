"""A fused checkpoint is the plain network's, and nothing is written that is not."""
import json
import signal
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmdyrep.deploy import fuse_checkpoint
from mmdyrep.fileio import read_checkpoint
from mmdyrep.models.building import build_model
from mmdyrep.reparam import blocks_of

from ..backbones import unfriendly
from ..runs import ROOT, needs_images
from .conftest import CONFIG


def plain_model(path):
    cfg = Config.fromfile(path)
    return MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).eval()


@torch.no_grad()
def logits(model):
    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    return model.double()(x.double(), mode='tensor')


def test_plain_network_takes_it_strictly_and_gives_the_same_logits(cfg, augmented, checkpoint, tmp_path):
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', out_config=tmp_path / 'plain.py')
    fused = torch.load(tmp_path / 'fused.pth', weights_only=False)
    for config in (tmp_path / 'plain.py', ROOT / 'configs' / 'small' / 'resnet18-w8_b64_fashion-mnist.py'):
        model = plain_model(config)
        assert not hasattr(model.backbone, 'candidates')
        model.load_state_dict(fused['state_dict'], strict=True)
        torch.testing.assert_close(logits(model), logits(augmented), rtol=0, atol=1e-4)
    assert report.relative < 1e-5 and 0 < report.difference < 1e-4
    assert report.structure == augmented.backbone.structure


def test_meta_tells_classes_and_origin_and_there_is_no_optimizer(cfg, checkpoint, augmented, tmp_path):
    fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth')
    fused = torch.load(tmp_path / 'fused.pth', weights_only=False)
    assert set(fused) == {'meta', 'state_dict'}
    meta = fused['meta']
    assert meta['dataset_meta'] == {'classes': ['shirt', 'coat']} and meta['epoch'] == 3
    assert meta['mmdyrep']['source'] == 'epoch_3.pth' and meta['mmdyrep']['structure'] == augmented.backbone.structure
    assert 'DyRep' not in meta['cfg'] and "type='ResNet_CIFAR'" in meta['cfg']


def test_average_by_default_and_raw_weights_when_asked_for(cfg, checkpoint, augmented, tmp_path):
    fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth')
    fuse_checkpoint(cfg, checkpoint, tmp_path / 'raw.pth', raw_weights=True)
    average, raw = (torch.load(tmp_path / name, weights_only=False)['state_dict']['head.fc.bias']
                    for name in ('fused.pth', 'raw.pth'))
    assert torch.equal(average, augmented.head.fc.bias)
    torch.testing.assert_close(raw, average + 0.01)


def test_raw_weights_of_a_run_without_ema_are_refused(cfg, augmented, tmp_path):
    torch.save(augmented.state_dict(), tmp_path / 'bare.pth')
    fuse_checkpoint(cfg, tmp_path / 'bare.pth', tmp_path / 'fused.pth')
    with pytest.raises(ValueError, match='without EMA.*leave out --raw-weights'):
        fuse_checkpoint(cfg, tmp_path / 'bare.pth', tmp_path / 'raw.pth', raw_weights=True)
    assert not (tmp_path / 'raw.pth').exists()


def test_backbone_alone_is_what_init_cfg_takes(cfg, checkpoint, augmented, tmp_path):
    fuse_checkpoint(cfg, checkpoint, tmp_path / 'backbone.pth', backbone_only=True)
    state = torch.load(tmp_path / 'backbone.pth', weights_only=False)['state_dict']
    backbone = MODELS.build(dict(cfg.model.backbone.backbone, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'backbone.pth'))))
    assert set(state) == set(backbone.state_dict())
    backbone.init_weights()
    backbone.eval()
    x = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[0], augmented.backbone(x)[0], rtol=0, atol=1e-4)


def test_files_that_the_training_started_from_are_not_needed(cfg, checkpoint, tmp_path):
    cfg.model.backbone.update(structure='gone.json', pretrained='gone.pth')
    cfg.model.backbone.backbone.init_cfg = dict(type='Pretrained', checkpoint='gone.pth')
    fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth')
    assert read_checkpoint(tmp_path / 'fused.pth')


def test_blocks_without_a_norm_behind_are_fused_by_the_config_of_their_training(cfg, tmp_path):
    cfg.model.backbone.update(space='repvgg', static=True, keep_norm=False)
    model = build_model(cfg)
    for block in blocks_of(model.backbone).values():
        unfriendly(block, 1)
    torch.save(model.state_dict(), tmp_path / 'trained.pth')
    report = fuse_checkpoint(cfg, tmp_path / 'trained.pth', tmp_path / 'fused.pth')
    assert report.structure == model.backbone.structure and report.relative < 1e-4


def test_plain_checkpoint_stays_what_it_is(cfg, checkpoint, tmp_path):
    fuse_checkpoint(cfg, checkpoint, tmp_path / 'once.pth')
    report = fuse_checkpoint(cfg, tmp_path / 'once.pth', tmp_path / 'twice.pth')
    once, twice = (torch.load(tmp_path / name, weights_only=False)['state_dict'] for name in ('once.pth', 'twice.pth'))
    assert all(torch.equal(once[key], twice[key]) for key in once)
    assert report.structure['ops'] == {} and report.difference == 0


@pytest.mark.parametrize('spoil, message', [
    (lambda state: state.pop('head.fc.weight'), 'Missing.*head.fc.weight'),
    (lambda state: state.update(extra=torch.ones(1)), 'Unexpected.*extra'),
    (lambda state: state.update({'head.fc.bias': torch.ones(7)}), 'size mismatch for head.fc.bias'),
    (lambda state: state.update({'backbone.conv2.branches.kxk.bn.weight': torch.ones(1)}), 'conv2'),
    (lambda state: state['backbone.conv1.branches.kxk.conv.weight'].fill_(float('nan')), 'NaN or infinite'),
])
def test_what_does_not_fit_is_said_and_the_old_files_stay(cfg, augmented, tmp_path, spoil, message):
    state = augmented.state_dict()
    spoil(state)
    torch.save({'state_dict': state}, tmp_path / 'bad.pth')
    for name in ('fused.pth', 'plain.py'):
        (tmp_path / name).write_text('old')
    with pytest.raises(ValueError, match=f'(?s){message}'):
        fuse_checkpoint(cfg, tmp_path / 'bad.pth', tmp_path / 'fused.pth', out_config=tmp_path / 'plain.py')
    assert {path.name for path in tmp_path.iterdir()} == {'bad.pth', 'fused.pth', 'plain.py'}
    assert (tmp_path / 'fused.pth').read_text() == (tmp_path / 'plain.py').read_text() == 'old'


def test_network_that_computes_something_else_is_not_written(cfg, checkpoint, tmp_path, monkeypatch):
    from mmdyrep.reparam import kernels, proof
    right = kernels.gain
    monkeypatch.setattr(kernels, 'gain', lambda bn: right(bn) * 1.1)
    monkeypatch.setattr(proof.Trial, 'failures', lambda self: {})  # which would see it first
    with pytest.raises(ValueError, match='does not agree'):
        fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth')
    assert not (tmp_path / 'fused.pth').exists()


def test_outputs_do_not_overwrite_their_source(cfg, checkpoint, tmp_path):
    with pytest.raises(ValueError, match='different files'):
        fuse_checkpoint(cfg, checkpoint, checkpoint)
    with pytest.raises(ValueError, match='ends in .py'):
        fuse_checkpoint(cfg, checkpoint, tmp_path / 'a.pth', out_config=tmp_path / 'plain.yaml')


@needs_images
def test_compares_on_real_images(cfg, checkpoint, tmp_path):
    cfg.test_dataloader.dataset.data_root = str(ROOT / 'data' / 'fashion-mnist')
    report = fuse_checkpoint(cfg, checkpoint, tmp_path / 'fused.pth', images=300)
    assert report.compared == 'logits on 300 images of the test set' and report.relative < 1e-5


@pytest.mark.slow
def test_killed_before_any_operation_on_files_the_old_checkpoint_or_the_new_one_is_there(checkpoint, tmp_path):
    for name in ('old', 'new'):
        (tmp_path / f'{name}.pth').write_bytes(checkpoint.read_bytes())
    command = [sys.executable, '-m', 'tests.dying_writer', 'fused', 'operation', str(tmp_path), str(CONFIG)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *deaths, last = map(json.loads, (line for line in done.stdout.splitlines() if line.startswith('{')))
    assert last == {'signal': 0, 'exit': 0, 'found': ['new']}
    assert len(deaths) >= 12 and {death['signal'] for death in deaths} == {signal.SIGKILL}
    assert all(death['found'] == ['old'] for death in deaths)
