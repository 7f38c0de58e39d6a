"""Small training runs on real images, as a config and through tools/train.py."""
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdyrep import RandomStateHook

ROOT = Path(__file__).parents[1]
DATA = ROOT / 'data' / 'fashion-mnist'
needs_images = pytest.mark.skipif(not DATA.exists(), reason=f'no Fashion-MNIST at {DATA}; tools/get_fashion_mnist.sh')


def small_config(by_epoch: bool = True, workers: int = 0, images: int = 256, batch: int = 32, **changes: Any) -> Config:
    """A run of 4 epochs or 32 iterations: dropout, random crops, validation that draws random numbers, warm-up.

    Args:
        by_epoch (bool): Epoch loop, a checkpoint an epoch, or iteration loop, one every 5.
        workers (int): Data workers; 0 augments in the main process.
        images (int): Training images.
        batch (int): Batch size.
        changes: Fields of the config to merge.
    """
    length = images // batch if by_epoch else 1
    random_crop = [dict(type='RandomCrop', crop_size=28, padding=2),
                   dict(type='RandomFlip', prob=0.5, direction='horizontal'), dict(type='PackInputs')]

    def loader(split: str, count: int, sampler: Dict[str, Any]) -> Dict[str, Any]:
        return dict(batch_size=batch, num_workers=workers, collate_fn=dict(type='default_collate'), sampler=sampler,
                    dataset=dict(type='FashionMNIST', data_root=str(DATA), split=split, test_mode=split == 'test',
                                 indices=count, pipeline=random_crop))

    cfg = Config(dict(
        default_scope='mmpretrain',
        custom_imports=dict(imports=['mmdyrep', 'tests.killing'], allow_failed_imports=False),
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(num_classes=10, mean=[72.94], std=[90.02], to_rgb=False),
            backbone=dict(type='ResNet_CIFAR', depth=18, num_stages=2, strides=(1, 2), dilations=(1, 1), in_channels=1,
                          stem_channels=4, base_channels=4, out_indices=(1, ), style='pytorch'),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='StackedLinearClsHead', num_classes=10, in_channels=8, mid_channels=[16],
                      dropout_rate=0.3)),
        train_dataloader=loader('train', images, dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler',
                                                      shuffle=True)),
        val_dataloader=loader('test', 64, dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=dict(type='Accuracy', topk=(1, )),
        train_cfg=dict(by_epoch=True, max_epochs=4, val_interval=1) if by_epoch else dict(
            by_epoch=False, max_iters=32, val_interval=7),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-4),
                           clip_grad=dict(max_norm=1.0)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
                         dict(type='CosineAnnealingLR', by_epoch=False, begin=6, T_max=4 * length if by_epoch else 32),
                         dict(type='CosineAnnealingMomentum', by_epoch=False, eta_min=0.8,
                              T_max=4 * length if by_epoch else 32)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1 if by_epoch else 5, by_epoch=by_epoch),
                           random_state=dict(type='RandomStateHook')),
        randomness=dict(seed=3, deterministic=True)))
    cfg.merge_from_dict(changes)
    return cfg


def train(cfg: Config, work_dir: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run tools/train.py in a process of its own; standard output and error come together."""
    path = work_dir.parent / f'{work_dir.name}.py'
    cfg.dump(path)
    return run_tool('train.py', path, '--work-dir', work_dir, *arguments)


def run_tool(tool: str, *arguments: Any) -> subprocess.CompletedProcess:
    """Run a script of tools/ from the root of the repository; standard output and error come together."""
    return subprocess.run([sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})


def differences(left: Any, right: Any, where: str = '') -> List[str]:
    """Where two nested values differ; tensors are compared by their bytes."""
    if isinstance(left, dict) and isinstance(right, dict) and list(left) == list(right):
        return [line for key in left for line in differences(left[key], right[key], f'{where}.{key}')]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        return [line for i, pair in enumerate(zip(left, right)) for line in differences(*pair, f'{where}[{i}]')]
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape and (
            left.numpy().tobytes() == right.numpy().tobytes())
    else:
        # containers that come here have other keys or lengths
        same = type(left) is type(right) and not isinstance(left, (dict, list, tuple)) and left == right
    return [] if same else [where]


class Line(torch.nn.Module):
    """Notes the batches that it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.seen: List[Any] = []

    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        self.seen.append((data.tolist(), torch.rand(1).item()))
        loss = (data @ self.weight - 1).square().mean()
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


def map_loader(**options: Any) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.arange(24.).view(12, 2) / 24, batch_size=2, **options)


def toy_runner(folder: Path, name: str, seed: Any = 5, deterministic: bool = True, by_epoch: bool = False,
               loader: Any = None, hooks: Any = (), wrapper: Any = {}, saving: Any = {}, **others: Any) -> Runner:
    """Six steps of a line, in this process, saved every fourth."""
    return Runner(
        Line(), str(folder), train_dataloader=map_loader() if loader is None else loader,
        train_cfg=dict(by_epoch=True, max_epochs=2) if by_epoch else dict(by_epoch=False, max_iters=6),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), **wrapper),
        # mmengine's logger asks for the length of every loader
        default_hooks=dict(logger=None, checkpoint=dict(
            type='CheckpointHook', by_epoch=False, **{'interval': 4, **saving})),
        custom_hooks=[RandomStateHook(), *hooks],
        randomness=dict(seed=seed, deterministic=deterministic), experiment_name=name, **others)
