"""Backbones with a re-parameterization of their own are fused into their own deploy form."""
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmdyrep.deploy import fuse_checkpoint

from ..backbones import unfriendly
from ..zoo import ZOO

NAMES = {'RepVGG': 128, 'MobileOne': 128, 'RepLKNet': 16, 'RepMLPNet': 16}
D2SE = dict(ZOO['RepVGG'].cfg['arch'], se_cfg=dict(ratio=16, divisor=1))


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def config(name, **changes):
    backbone = dict(type='DyRepBackbone', backbone=dict(ZOO[name].cfg, **changes), **ZOO[name].wrapper)
    return Config(dict(default_scope='mmpretrain', model=dict(
        type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=NAMES[name]))))


def checkpoint(cfg, folder):
    """File of a classifier with two blocks, and the classifier."""
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for op in model.backbone.candidates()[:2]:
        model.backbone.expand(op)
    unfriendly(model).eval()
    torch.save(model.state_dict(), folder / 'augmented.pth')
    return folder / 'augmented.pth', model


@pytest.mark.parametrize('name', NAMES)
def test_plain_config_and_checkpoint_are_the_deploy_form(name, tmp_path):
    cfg = config(name)
    path, model = checkpoint(cfg, tmp_path)
    report = fuse_checkpoint(cfg, path, tmp_path / 'plain.pth', out_config=tmp_path / 'plain.py')
    assert len(report.structure['ops']) == 2 and report.relative < 1e-4
    plain = MODELS.build(Config.fromfile(tmp_path / 'plain.py').model).eval()
    plain.load_state_dict(torch.load(tmp_path / 'plain.pth', weights_only=False)['state_dict'], strict=True)
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-3, atol=1e-4)


def test_deploy_form_that_computes_something_else_is_not_written(tmp_path):
    # mmpretrain's RepVGG leaves its squeeze-and-excitation out of it
    cfg = config('RepVGG', arch=D2SE)
    path, _ = checkpoint(cfg, tmp_path)
    with pytest.raises(ValueError, match=r'does not agree(?s:.*)deploy form of RepVGG'):
        fuse_checkpoint(cfg, path, tmp_path / 'plain.pth')
    assert not (tmp_path / 'plain.pth').exists()
