"""Configs of the libraries with their backbone wrapped by one line, made small enough for a test; their scripts."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator

from mmengine.config import Config

from .runs import DATA, ROOT
from .scenes import CLASSES, SIZE

WRAPPED = '''_base_ = ['{base}']
custom_imports = dict(imports=['mmdyrep'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='DyRepBackbone', backbone={{{{_base_.model.backbone}}}}))
default_hooks = dict(
    dyrep=dict(type='DyRepHook', interval={interval}, by_epoch={by_epoch}, calibration_batches=2),
    random_state=dict(type='RandomStateHook'))
'''
NARROW = dict(base_channels=8, stem_channels=8)

# The library's config, and what makes its model small.
CONFIGS: Dict[str, Dict[str, Any]] = {
    'retinanet': dict(base='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', model=dict(
        backbone=dict(backbone=NARROW), neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
        bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1))),
    'mask_rcnn': dict(base='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', model=dict(
        backbone=dict(backbone=NARROW), neck=dict(in_channels=[32, 64, 128, 256], out_channels=16),
        rpn_head=dict(in_channels=16, feat_channels=16), roi_head=dict(
            bbox_roi_extractor=dict(out_channels=16), mask_roi_extractor=dict(out_channels=16),
            bbox_head=dict(in_channels=16, fc_out_channels=32),
            mask_head=dict(in_channels=16, conv_out_channels=16)))),
    'rtmdet': dict(base='mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', model=dict(
        backbone=dict(backbone=dict(widen_factor=.125)), neck=dict(in_channels=[32, 64, 128], out_channels=32),
        bbox_head=dict(in_channels=32, feat_channels=32))),
    'deeplabv3plus': dict(base='mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py', model=dict(
        backbone=dict(backbone=NARROW), decode_head=dict(in_channels=64, channels=16, c1_in_channels=8, c1_channels=8),
        auxiliary_head=dict(in_channels=32, channels=16))),
    'upernet': dict(base='mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py', model=dict(
        backbone=dict(backbone=NARROW), decode_head=dict(in_channels=[32, 64, 128, 256], channels=16),
        auxiliary_head=dict(in_channels=128, channels=16))),
    'resnext': dict(base='mmpretrain::resnext/resnext50-32x4d_8xb32_in1k.py', model=dict(
        backbone=dict(backbone=dict(NARROW, groups=4)), head=dict(in_channels=256))),
    'regnet': dict(base='mmpretrain::regnet/regnetx-400mf_8xb128_in1k.py', model={}),
    'mobilenet_v2': dict(base='mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', model=dict(
        backbone=dict(backbone=dict(widen_factor=.25)))),
    'repvgg': dict(base='mmpretrain::repvgg/repvgg-A0_8xb32_in1k.py', model=dict(
        backbone=dict(backbone=dict(arch=dict(
            _delete_=True, num_blocks=[1, 1, 1, 1], width_factor=[.25] * 4, group_layer_map=None, se_cfg=None))),
        head=dict(in_channels=128))),
}


def library_of(name: str) -> str:
    """Library that a config is from."""
    return CONFIGS[name]['base'].split('::')[0]


def _dicts(node: Any) -> Iterator[Dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from _dicts(item)


def small(name: str, folder: Path, scenes: Path) -> Config:
    """A config of `CONFIGS`, wrapped as the README says, on the scenes, for one or two updates.

    Args:
        name (str): Key of `CONFIGS`.
        folder (Path): For the config file that inherits from the library's.
        scenes (Path): Folder of :func:`tests.scenes.write_scenes`; of classifiers Fashion-MNIST is used instead.
    """
    library, entry = library_of(name), CONFIGS[name]
    by_epoch = library != 'mmseg'
    path = folder / f'wrapped_{name}.py'
    path.write_text(WRAPPED.format(base=entry['base'], by_epoch=by_epoch, interval=1 if by_epoch else 2))
    cfg = Config.fromfile(path)
    for node in list(_dicts(cfg.model)):
        if isinstance(node.get('init_cfg'), dict) and 'checkpoint' in node['init_cfg']:
            node.pop('init_cfg')  # of the net
    cfg.model.pop('pretrained', None)
    cfg.merge_from_dict(dict(model=entry['model'], log_level='WARNING'))
    if library == 'mmpretrain':
        _classifier(cfg)
    else:
        _data(cfg, library, scenes)
    cfg.train_cfg.update(dict(max_epochs=2) if by_epoch else dict(max_iters=4, val_interval=4))
    cfg.train_cfg.pop('dynamic_intervals', None)
    cfg.default_hooks.checkpoint.interval = 1 if by_epoch else 4
    cfg.randomness = dict(seed=0)
    for hook in cfg.get('custom_hooks') or []:
        if hook.type == 'PipelineSwitchHook':
            hook.switch_epoch = 1
    return cfg


def _data(cfg: Config, library: str, scenes: Path) -> None:
    for node in _dicts(cfg._cfg_dict):
        for key in ('scale', 'img_scale', 'crop_size', 'size'):
            if isinstance(node.get(key), (list, tuple)) and min(node[key]) > SIZE:
                node[key] = (SIZE, SIZE)
        if 'score_thr' in node:
            node['score_thr'] = 0.0  # so that a net that has learned nothing predicts something
        if 'num_classes' in node and library == 'mmdet':
            node['num_classes'] = len(CLASSES)
        if 'nms_pre' in node:
            node.update(nms_pre=min(node['nms_pre'], 100))
        if 'max_per_img' in node:
            node.update(max_per_img=min(node['max_per_img'], 20))
    for part in ('train', 'val', 'test'):
        loader = cfg[f'{part}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(scenes)
        if library == 'mmdet':
            loader.dataset.update(ann_file='instances.json', data_prefix=dict(
                img='images/train' if part == 'train' else 'images/val'), metainfo=dict(classes=CLASSES))
    if library == 'mmdet':
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            evaluator.ann_file = str(scenes / 'instances.json')


def _classifier(cfg: Config) -> None:
    pipeline = [dict(type='Resize', scale=32), dict(type='PackInputs')]
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'] = dict(
            batch_size=8, num_workers=0, persistent_workers=False, collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=part == 'train'),
            dataset=dict(type='FashionMNIST', data_root=str(DATA), split='train' if part == 'train' else 'test',
                         indices=32, pipeline=pipeline))
    # three means make three channels of one
    cfg.data_preprocessor = dict(num_classes=10, mean=[72.94] * 3, std=[90.02] * 3, to_rgb=False)
    cfg.model.head.num_classes = 10
    cfg.val_evaluator = cfg.test_evaluator = dict(type='Accuracy', topk=(1, ))


def call(library: str, script: str, *arguments: Any) -> str:
    """Output of a script of a library's tools, as they come with its package; a failure fails the test."""
    path = Path(importlib.util.find_spec(library).origin).parent / '.mim' / 'tools' / script
    done = subprocess.run([sys.executable, '-W', 'ignore', str(path), *map(str, arguments)], text=True, cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout
