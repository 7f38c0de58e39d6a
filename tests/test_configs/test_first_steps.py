"""Every full-size config takes its first training steps, through its own pipeline, on a few small real images."""
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdyrep.cli import set_loader_defaults
from mmdyrep.models.finding import unwrapped
from tests.configs import all_configs, read
from tests.image_folders import cityscapes_folder, coco_folder, imagenet_folder
from tests.runs import needs_images

STEPS = 2
NAMES = [name for name in all_configs() if not name.startswith('small/')]
# configs that differ from one of these by the structure, the start or the size of the backbone alone: built in
# test_configs.py
SAME = ('-norm_', '-7ops_', '-dbb-c_', '-dyrep-c_', '-dyrep-cd_', 'cifar100', 'resnet34', 'resnetv1c50', 'B2g4', 'B3',
        'pspnet_r50-')


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data')
    imagenet_folder(root / 'in1k', 2 * STEPS, 1)
    coco_folder(root / 'coco', 2 * STEPS)
    cityscapes_folder(root / 'cityscapes', 2 * STEPS)
    return root


def tiny(name: str, data: Path, work_dir: Path) -> Config:
    """The config on four small images, two a batch, from random weights; nothing else is changed."""
    cfg = read(name).copy()
    kind = next(kind for kind in ('in1k', 'cifar', 'coco', 'cityscapes') if kind in name)
    loader = cfg.train_dataloader
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    pipeline = loader.dataset.pipeline
    if kind == 'cifar':
        loader.dataset = dict(type='ImageNet', data_root=str(data / 'in1k'), split='train',
                              pipeline=[dict(type='LoadImageFromFile'), *pipeline])
    else:
        loader.dataset.data_root = str(data / kind)
    if kind == 'in1k':
        pipeline[1].scale = 64
    elif kind == 'coco':
        pipeline[2].scale = (64, 64)
        cfg.model.backbone.update(init_cfg=None)
        cfg.model.backbone.pop('pretrained', None)
        cfg.model.backbone.get('backbone', {}).update(init_cfg=None)
    elif kind == 'cityscapes':
        pipeline[2].scale, pipeline[3].crop_size = (64, 64), (32, 32)
        cfg.model.data_preprocessor.size = (32, 32)
        cfg.model.pretrained = None
    if cfg.train_cfg.get('type') == 'IterBasedTrainLoop':
        cfg.train_cfg.max_iters = STEPS
    for part in ('dataloader', 'evaluator', 'cfg'):
        for split in ('val', 'test'):
            cfg[f'{split}_{part}'] = None
    cfg.default_hooks.checkpoint = None
    cfg.default_hooks.pop('visualization', None)
    cfg.update(work_dir=str(work_dir), experiment_name=work_dir.name, log_level='WARNING')
    return cfg


class Watch(Hook):
    """Notes the losses, and the parameters that learn as they are at the start; ends after an epoch."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.losses, self.start = [], {}

    def before_train_epoch(self, runner) -> None:
        self.start = {key: value.detach().clone() for key, value in unwrapped(runner.model).named_parameters()
                      if value.requires_grad}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append(float(outputs['loss']))

    def after_train_epoch(self, runner) -> None:
        runner.train_loop.stop_training = True


@needs_images
@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in NAMES if not any(part in name for part in SAME)])
def test_first_steps(name: str, data: Path, tmp_path: Path) -> None:
    cfg = tiny(name, data, tmp_path / 'run')
    set_loader_defaults(cfg)
    watch = Watch()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(watch)
    runner.train()
    assert len(watch.losses) == STEPS and all(loss == loss and 0 < loss < 1e4 for loss in watch.losses)
    model, before = unwrapped(runner.model), watch.start
    assert before and all(torch.isfinite(value).all() for value in model.parameters())
    learning = {key: value for key, value in model.named_parameters() if key in before}
    # all have been stepped, however little: warm-up and gammas of 0 leave some where they were
    stepped = [key for key, value in learning.items() if value in runner.optim_wrapper.optimizer.state]
    if 'repnas' in cfg.default_hooks:  # it runs some branches
        assert 0 < sum('.branches.' in key for key in stepped) < sum('.branches.' in key for key in learning)
        learning = {key: value for key, value in learning.items() if '.branches.' not in key or key in stepped}
    assert stepped == list(learning)
    assert sum(not torch.equal(before[key], value) for key, value in learning.items()) > len(learning) / 2
