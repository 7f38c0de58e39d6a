"""New-style configs, whose types are classes and whose bases are imports."""
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.models import ResNet_CIFAR

from mmdyrep.deploy import fuse_checkpoint

from ..runs import DATA, needs_images

BASE = f'''
from mmengine.dataset import DefaultSampler, default_collate
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper
from mmpretrain.datasets import FashionMNIST, PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet_CIFAR
from torch.optim import SGD

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier, neck=dict(type=GlobalAveragePooling),
    backbone=dict(type=ResNet_CIFAR, depth=18, in_channels=1, stem_channels=4, base_channels=4),
    head=dict(type=LinearClsHead, num_classes=10, in_channels=32))
data_preprocessor = dict(num_classes=10, mean=[72.94], std=[90.02], to_rgb=False)
train_dataloader = dict(
    batch_size=16, num_workers=0, collate_fn=dict(type=default_collate),
    sampler=dict(type=DefaultSampler, shuffle=True), dataset=dict(
        type=FashionMNIST, data_root={str(DATA)!r}, split='train', indices=64, pipeline=[dict(type=PackInputs)]))
test_dataloader = dict(
    batch_size=16, num_workers=0, collate_fn=dict(type=default_collate),
    sampler=dict(type=DefaultSampler, shuffle=False), dataset=dict(
        type=FashionMNIST, data_root={str(DATA)!r}, split='test', indices=32, pipeline=[dict(type=PackInputs)]))
test_evaluator = dict(type=Accuracy)
test_cfg = dict()
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1))
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.05))
train_cfg = dict(by_epoch=True, max_epochs=2)
'''
WRAPPED = '''
from mmengine.config import read_base

with read_base():
    from .base import *

from mmdyrep import DyRepBackbone, DyRepHook, RandomStateHook

model.backbone = dict(type=DyRepBackbone, backbone=model.backbone)
default_hooks.update(
    dyrep=dict(type=DyRepHook, interval=1, calibration_batches=2), random_state=dict(type=RandomStateHook))
'''


@pytest.fixture(autouse=True)
def no_scope():
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()


def runner_of(path, folder, **changes):
    cfg = Config.fromfile(path)
    cfg.update(work_dir=str(folder), experiment_name=str(folder), log_level='WARNING', **changes)
    return Runner.from_cfg(cfg)


@needs_images
def test_trained_fused_and_tested_with_the_config_that_is_written(tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'wrapped.py').write_text(WRAPPED)
    runner = runner_of(tmp_path / 'wrapped.py', tmp_path / 'run')
    runner.train()
    structure = runner.model.backbone.structure
    assert structure['ops'] and isinstance(runner.model.backbone, ResNet_CIFAR)

    checkpoint = tmp_path / 'run' / 'epoch_2.pth'
    report = fuse_checkpoint(Config.fromfile(tmp_path / 'wrapped.py'), checkpoint, tmp_path / 'plain.pth',
                             out_config=tmp_path / 'plain.py', images=8)
    assert report.structure == structure and report.compared == 'logits on 8 images of the test set'
    # the folder of the images may be called so
    assert 'mmdyrep' not in (tmp_path / 'plain.py').read_text().replace(str(DATA), '')
    before = runner_of(tmp_path / 'wrapped.py', tmp_path / 'a', load_from=str(checkpoint)).test()
    plain = runner_of(tmp_path / 'plain.py', tmp_path / 'b', load_from=str(tmp_path / 'plain.pth'))
    assert plain.test() == before
    assert type(plain.model.backbone) is ResNet_CIFAR
    plain.model.load_state_dict(torch.load(tmp_path / 'plain.pth', weights_only=False)['state_dict'], strict=True)
