"""Table 5: from pre-training to detection and segmentation."""
from dataclasses import replace
from typing import Any, Dict, List, Mapping

from .experiment import BOX_AP, MIOU, Run
from .parts import HOOK, imagenet

DETECTOR, SEGMENTOR = 'faster-rcnn_r50{}_fpn_1x_coco.py', 'pspnet_r50b-d8{}_4xb2-40k_cityscapes-512x1024.py'
PATHS = {'C': ('model.backbone.init_cfg.checkpoint', 'model.pretrained', '{backbone}'),
         'C+D': ('model.backbone.pretrained', 'model.pretrained', '{checkpoint}')}

DBB, DYREP = (replace(imagenet(row, 'ResNet-50', kind, value=value), column='classification') for row, kind, value in (
    ('DBB, C', 'dbb', 76.78), ('DyRep, C', 'dyrep', 77.08)))


def _full(row: str, suffix: str, start: str, before: Any, box_ap: float, miou: float) -> List[Run]:
    detection, segmentation, file = PATHS.get(start, ('', '', ''))
    return [Run(row, 'detection', 'detection/' + DETECTOR.format(suffix), {detection: file} if file else {},
                {'value': box_ap}, BOX_AP, before),
            Run(row, 'segmentation', 'segmentation/' + SEGMENTOR.format(suffix), {segmentation: file} if file else {},
                {'value': miou}, MIOU, before)]


# plain networks start from published weights, as in the paper
FULL_TRANSFER: List[Run] = [
    *_full('Origin', '', '', None, 37.4, 77.85),
    DBB, *_full('DBB, C', '-dbb-c', 'C', DBB, 37.8, 78.18),
    DYREP, *_full('DyRep, C', '-dyrep-c', 'C', DYREP, 38.0, 78.32),
    *_full('DyRep, D', '-dyrep-d', '', None, 37.7, 78.09),
    *_full('DyRep, C+D', '-dyrep-cd', 'C+D', DYREP, 38.1, 78.49)]

SCENES = 'b64_fashion-scenes.py'
LOADERS = {'train_dataloader.num_workers': 0, 'train_dataloader.persistent_workers': False,
           'val_dataloader.num_workers': 0, 'val_dataloader.persistent_workers': False}
# the images lie by class, a part of them would be a part of the classes: few epochs, so one update of several ops
CLASSES = {**LOADERS, 'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2, 'param_scheduler.T_max': 2}
COCO = {**LOADERS, 'train_dataloader.dataset.indices': 800, 'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2,
        'param_scheduler.1.T_max': 2}
CITYSCAPES = {**LOADERS, 'train_cfg.max_iters': 200, 'train_cfg.val_interval': 200, 'param_scheduler.0.end': 200,
              'val_dataloader.dataset.indices': 200}


def _small(row: str, config: str, column: str, common: Mapping[str, Any], options: Dict[str, Any], **rest: Any) -> Run:
    return Run(row, column, f'small/{config}', {**common, **options}, **rest)


TEN = {HOOK + 'calibration_batches': 10}
PLAIN8 = _small('Origin', f'resnet18-w16_{SCENES}', 'classification', CLASSES, {})
DBB8 = _small('DBB, C', f'resnet18-w16-dbb_{SCENES}', 'classification', CLASSES, {})
DYREP8 = _small('DyRep, C', f'dyrep_resnet18-w16_{SCENES}', 'classification', CLASSES,
                {**TEN, HOOK + 'num_grow': 4, HOOK + 'end': 1})


def _downstream(row: str, stage: str, before: Run) -> List[Run]:
    suffix = {'': '', 'C': '-dyrep-c', 'D': '-dyrep-d', 'C+D': '-dyrep-cd'}[stage]
    # the plain network's checkpoint is read as it is, those with blocks are fused; C+D takes the blocks along
    file = '{backbone}' if stage == 'C' else '{checkpoint}'
    key = 'pretrained' if 'D' in stage else 'init_cfg.checkpoint'
    prefix = {} if stage else {'model.backbone.init_cfg.prefix': 'backbone.'}
    hook = TEN if 'D' in stage else {}
    segmented = {**hook, HOOK + 'interval': 50} if 'D' in stage else {}
    return [_small(row, f'faster-rcnn_r18-w16{suffix}_fpn_b8_fashion-scenes.py', 'detection', COCO,
                   {f'model.backbone.{key}': file, **prefix, **hook}, metric=BOX_AP, before=before),
            _small(row, f'pspnet_r18-w16-d8{suffix}_b8_fashion-scenes.py', 'segmentation', CITYSCAPES,
                   {f'model.backbone.{key}': file, **prefix, **segmented}, metric=MIOU, before=before)]


SMALL_TRANSFER: List[Run] = [
    PLAIN8, *_downstream('Origin', '', PLAIN8), DBB8, *_downstream('DBB, C', 'C', DBB8),
    DYREP8, *_downstream('DyRep, C', 'C', DYREP8),
    *_downstream('DyRep, D', 'D', PLAIN8), *_downstream('DyRep, C+D', 'C+D', DYREP8)]
