"""Checkpoints of other code compute the same in ours, with their branches."""
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Sequence

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmdyrep.convert import Report, convert_checkpoint
from mmdyrep.models.building import build_model
from tests.backbones import RESNET18, images, unfriendly
from tests.foreign import CLASSES, AuthorsBlock, DBBMobileNet, DBBResNet, LikeTorchvision, RepVGG
from tests.runs import ROOT

ALL = ('1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1', 'residual')
UNEQUAL = ALL[:-1]
DEPTHS, WIDTHS = (1, 2, 1, 1), (8, 8, 16, 16, 32)
ARCH = dict(num_blocks=DEPTHS, width_factor=(.125, .125, .0625, .0625), group_layer_map=None, se_cfg=None)
REPVGG: Dict[str, Any] = dict(type='RepVGGPlain', arch=ARCH, out_indices=(3, ))


def config(backbone: Dict[str, Any], channels: int, **settings: Any) -> Config:
    return Config(dict(default_scope='mmpretrain', custom_imports=dict(imports=['mmdyrep']), model=dict(
        type='ImageClassifier', backbone=dict(dict(type='DyRepBackbone', backbone=backbone), **settings),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=channels))))


def authors(ops: Dict[str, Sequence[str]], biased: Sequence[str] = ()) -> nn.Module:
    """A ResNet of the authors' code, grown at these ops; a conv that was cut back has got a bias there."""
    torch.manual_seed(0)
    net = LikeTorchvision(MODELS.build(RESNET18), 64)
    for name, branches in ops.items():
        parent, _, child = name.rpartition('.')
        setattr(net.get_submodule(parent), child, AuthorsBlock(net.get_submodule(name), branches))
    for name in biased:
        net.get_submodule(name).bias = nn.Parameter(torch.randn(net.get_submodule(name).out_channels))
    return unfriendly(net, 3).double().eval()


GROWN = {'conv1': UNEQUAL, 'layer1.0.conv2': ALL, 'layer2.0.conv1': ('1x1', '1x1_avg'), 'layer2.1.conv1': ('1x1_kxk', ),
         # within the branches of another block
         'layer1.0.conv2.dbb_kxk.conv': ALL, 'layer2.1.conv1.dbb_1x1_kxk.conv2': ('1x1_kxk', '1x1_avg')}
OURS = {'conv1': UNEQUAL, 'layer1.0.conv2': ALL, 'layer2.0.conv1': ('1x1', '1x1_avg'), 'layer2.1.conv1': ('1x1_kxk', ),
        'layer1.0.conv2.branches.kxk.conv': ALL, 'layer2.1.conv1.branches.1x1_kxk.conv': ('1x1_kxk', '1x1_avg')}


def converted(net: nn.Module, cfg: Config, folder: Path, **options: Any) -> Report:
    torch.save({'epoch': 3, 'model': net.state_dict()}, folder / 'theirs.pth')
    return convert_checkpoint(cfg, folder / 'theirs.pth', folder / 'ours.pth', **options)


def same(net: nn.Module, cfg: Config, folder: Path, bound: float = 1e-11) -> nn.Module:
    """Our model with the converted checkpoint, its logits compared with theirs, fused too."""
    x = images(64)
    model = build_model(cfg).double()
    model.load_state_dict(torch.load(folder / 'ours.pth')['state_dict'], strict=True)
    model.eval()

    def difference(other: nn.Module) -> float:
        with torch.no_grad():
            wanted: Tensor = net(x)
            return float((other(x) - wanted).abs().max() / wanted.abs().max())

    assert difference(model) < bound
    expanded = model.backbone.structure
    model.backbone.switch_to_deploy()
    assert difference(model) < bound and not model.backbone.structure['ops']
    model.structure_before = expanded
    return model


def test_a_grown_network_of_the_authors_keeps_its_function_and_its_branches(tmp_path: Path) -> None:
    net, cfg = authors(GROWN, biased=('layer3.0.conv1', )), config(RESNET18, 64)
    report = converted(net, cfg, tmp_path)
    assert report.layouts == {"the DyRep authors'": 4} and report.absorbed == 0 and report.difference < 1e-12
    found = {name: set(branches) - {'kxk'} for name, branches in report.structure['ops'].items()}
    assert found == {name: set(branches) for name, branches in OURS.items()}
    same(net, cfg, tmp_path)


def test_each_branch_is_itself_and_not_the_sum_alone(tmp_path: Path) -> None:
    """A branch can be taken out: what is left is the authors' block without it."""
    net, cfg = authors({'layer1.0.conv2': ALL}), config(RESNET18, 64)
    converted(net, cfg, tmp_path)
    model = build_model(cfg).double()
    model.load_state_dict(torch.load(tmp_path / 'ours.pth')['state_dict'])
    theirs, ours, x = net.layer1[0].conv2, model.backbone.layer1[0].conv2.eval(), images(12, channels=8)
    for name, part in dict(zip(ALL, ('dbb_1x1', 'dbb_1x1_kxk', 'dbb_1x1_avg', 'dbb_1xk', 'dbb_kx1', 'dbb_id')),
                           kxk='dbb_kxk').items():
        torch.testing.assert_close(ours.branches[name](x), getattr(theirs, part)(x), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize('static', [dict(), dict(space='dbb', static=True, keep_norm=False)], ids=['plain', 'static'])
def test_a_resnet_of_dbb_gets_norms_that_do_nothing(tmp_path: Path, static: Dict[str, Any]) -> None:
    torch.manual_seed(0)
    net, cfg = unfriendly(DBBResNet(8), 3).double().eval(), config(RESNET18, 64, **static)
    report = converted(net, cfg, tmp_path)
    assert report.layouts == {'DBB': 16} and report.absorbed == 0
    assert all(branches == ['kxk', '1x1', '1x1_kxk', '1x1_avg'] for branches in report.structure['ops'].values())
    same(net, cfg, tmp_path)


def test_a_mobilenet_of_dbb_whose_wide_branches_are_absorbed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = unfriendly(DBBMobileNet(4), 3).double().eval()
    cfg = config(dict(type='MobileNetV1', widen_factor=0.125), 128)
    report = converted(net, cfg, tmp_path)
    assert report.layouts == {'DBB': 14} and report.absorbed == 13
    assert report.structure['ops']['stages.1.0.depthwise.conv'] == ['kxk', '1x1_avg']
    same(net, cfg, tmp_path)


def test_a_repvgg_of_its_authors_can_grow_here(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, cfg = unfriendly(RepVGG(DEPTHS, WIDTHS), 3).double().eval(), config(REPVGG, 32)
    report = converted(net, cfg, tmp_path)
    assert report.layouts == {'RepVGG': 6}
    assert report.structure['ops']['stage_2.1.branch_3x3.conv'] == ['kxk', '1x1', 'residual']
    same(net, cfg, tmp_path)


def test_a_repvgg_of_mmpretrain_can_grow_here(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = config(dict(REPVGG, type='RepVGG'), 32)
    theirs.model.backbone = theirs.model.backbone.backbone
    net, cfg = unfriendly(build_model(theirs), 3).double().eval(), config(REPVGG, 32)
    report = converted(net, cfg, tmp_path)
    assert report.layouts == {"mmpretrain's RepVGG": 6}
    same(net, cfg, tmp_path)


def test_a_fused_network_becomes_a_plain_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, cfg = RepVGG(DEPTHS, WIDTHS, fused='rbr_reparam').double().eval(), config(REPVGG, 32)
    report = converted(net, cfg, tmp_path)
    assert not report.layouts and not report.structure['ops']
    same(net, cfg, tmp_path)


class Renamed(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.encoder, self.classifier = net, net.fc
        del net.fc

    def forward(self, x: Tensor) -> Tensor:
        self.encoder.fc = nn.Identity()
        return self.classifier(self.encoder(x))


def test_names_of_other_networks_are_given(tmp_path: Path) -> None:
    net, cfg = Renamed(authors(GROWN)), config(RESNET18, 64)
    with pytest.raises(ValueError, match=r'a block at encoder.*--rename PATTERN=NEW'):
        converted(net, cfg, tmp_path)
    assert not (tmp_path / 'ours.pth').exists()
    converted(net, cfg, tmp_path, rename=['encoder=backbone', 'classifier=head.fc'])
    same(net, cfg, tmp_path)
    for wrong in ('encoder', '(=backbone', '=backbone'):
        with pytest.raises(ValueError, match='--rename'):
            converted(net, cfg, tmp_path, rename=[wrong])


def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    net, cfg = authors(GROWN), config(RESNET18, 64)
    with pytest.raises(ValueError, match='does not fit the model'):
        converted(net, config(dict(RESNET18, depth=34), 64), tmp_path)
    with pytest.raises(ValueError, match="no entry 'ema_model'"):
        converted(net, cfg, tmp_path, key='ema_model')
    net.layer1[0].conv2.dbb_1x1.conv.weight.data[0] = float('nan')
    with pytest.raises(ValueError, match='layer1.0.conv2: the converted block differs'):
        converted(net, cfg, tmp_path)
    assert not (tmp_path / 'ours.pth').exists()


def test_the_check_sees_another_eps(tmp_path: Path) -> None:
    cfg = config(RESNET18, 64, norm_cfg=dict(type='BN', eps=0.01))
    with pytest.raises(ValueError, match='the converted block differs'):
        converted(authors(GROWN), cfg, tmp_path)


@pytest.mark.slow
def test_the_tool_converts_and_fuses(tmp_path: Path) -> None:
    net, cfg = authors(GROWN).float(), config(RESNET18, 64)
    torch.save({'model': {f'module.{key}': value for key, value in net.state_dict().items()}}, tmp_path / 'theirs.pth')
    cfg.dump(tmp_path / 'config.py')

    def call(tool: str, *names: str) -> str:
        done = subprocess.run([sys.executable, f'tools/{tool}.py', 'config.py', *names], cwd=tmp_path, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.stdout
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    said = call('convert_checkpoint', 'theirs.pth', 'ours.pth')
    assert "blocks: 4 the DyRep authors'" in said and 'written: ours.pth' in said, said
    said = call('deploy_fuse', 'ours.pth', 'plain.pth')
    assert '6 blocks fused' in said, said
    same(net.double(), cfg, tmp_path, bound=1e-5)
