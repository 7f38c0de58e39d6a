"""Configs of mmdet, mmseg and mmpretrain: wrapped by one line, trained, tested, fused, tested again, nothing else new.

Two by the libraries' own scripts, as a user calls them, the others within this process.
"""
import json
import os
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmdyrep import DyRepBackbone
from mmdyrep.deploy import fuse_checkpoint
from mmdyrep.fileio import read_json

from ..library_configs import CONFIGS, call, library_of, small
from ..runs import ROOT, needs_images
from ..scenes import write_scenes

BY_SCRIPTS = ('rtmdet', 'deeplabv3plus')
pytestmark = [pytest.mark.slow, needs_images]


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp('scenes'))


@pytest.fixture(autouse=True)
def no_scope():
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()


def runner_of(cfg, folder, **changes):
    cfg = Config(dict(cfg.to_dict(), work_dir=str(folder), experiment_name=str(folder), **changes))
    return Runner.from_cfg(cfg)


def instances(result):
    found = result if isinstance(result, dict) else result.pred_instances
    return {key: np.asarray(found[key]) for key in ('bboxes', 'scores', 'labels', 'masks') if key in found}


def agree(before, after):
    """Same boxes, labels, scores and masks, in whatever order equal scores come."""
    assert len(before['scores']) == len(after['scores']) > 0
    np.testing.assert_allclose(np.sort(before['scores']), np.sort(after['scores']), atol=1e-4)
    matched = 0
    for i, box in enumerate(before['bboxes']):
        same = (np.abs(after['bboxes'] - box).max(1) < 0.1) & (after['labels'] == before['labels'][i]) & (
            np.abs(after['scores'] - before['scores'][i]) < 1e-4)
        if same.any() and 'masks' in before:
            same = [(after['masks'][j] != before['masks'][i]).mean() < 0.01 for j in np.flatnonzero(same)]
        matched += bool(np.any(same))
    assert matched >= 0.95 * len(before['bboxes'])


def predictions(library, config, checkpoint, pictures):
    """What the functions of each library's ``apis`` predict for some pictures."""
    if library == 'mmdet':
        from mmdet.apis import inference_detector, init_detector
        model = init_detector(str(config), str(checkpoint), device='cpu')
        return model, [instances(result) for result in inference_detector(model, pictures)]
    if library == 'mmseg':
        from mmseg.apis import inference_model, init_model
        model = init_model(str(config), str(checkpoint), device='cpu')
        return model, [result.seg_logits.data.numpy() for result in inference_model(model, pictures)]
    from mmpretrain import ImageClassificationInferencer, get_model
    model = get_model(str(config), pretrained=str(checkpoint), device='cpu')
    return model, [np.asarray(result['pred_scores']) for result in ImageClassificationInferencer(model)(pictures)]


@pytest.mark.parametrize('name', [name for name in CONFIGS if name not in BY_SCRIPTS])
def test_trained_fused_and_the_same_predictions_by_the_apis(name, scenes, tmp_path):
    library, cfg = library_of(name), small(name, tmp_path, scenes)
    runner = runner_of(cfg, tmp_path / 'run')
    runner.train()
    structure = runner.model.backbone.structure
    updates = read_json(tmp_path / 'run' / 'dyrep' / 'history.json')['updates']
    assert structure['ops'] and len(updates) == 2 and all(update['drift'] < 1e-4 for update in updates)
    config, checkpoint = tmp_path / 'small.py', (tmp_path / 'run' / 'last_checkpoint').read_text()
    cfg.dump(config)

    DefaultScope._instance_dict.clear()
    report = fuse_checkpoint(Config.fromfile(config), checkpoint, tmp_path / 'plain.pth',
                             out_config=tmp_path / 'plain.py', images=2)
    assert report.structure == structure and report.relative < 1e-4
    assert report.compared == ('logits' if library == 'mmpretrain' else 'feature maps of the backbone') + (
        ' on 2 images of the test set')

    # neck and heads are what they were, to the byte
    source, fused = (torch.load(path, weights_only=False)['state_dict']
                     for path in (checkpoint, tmp_path / 'plain.pth'))
    rest = [key for key in source if not key.startswith('backbone.')]
    assert rest and rest == [key for key in fused if not key.startswith('backbone.')]
    assert all(source[key].numpy().tobytes() == fused[key].numpy().tobytes() for key in rest)

    pictures = [str(scenes / 'images' / 'val' / f'scene_{i}.png') for i in range(2)]
    augmented, before = predictions(library, config, checkpoint, pictures)
    DefaultScope._instance_dict.clear()
    plain, after = predictions(library, tmp_path / 'plain.py', tmp_path / 'plain.pth', pictures)
    assert augmented.backbone.structure == structure
    assert not isinstance(plain.backbone, DyRepBackbone) and 'DyRep' not in (tmp_path / 'plain.py').read_text()
    plain.load_state_dict(fused, strict=True)
    for first, second in zip(before, after):
        if library == 'mmdet':
            agree(first, second)
        else:
            assert first.std() > 0
            np.testing.assert_allclose(first, second, atol=1e-4 * max(1, np.abs(first).max()))

    DefaultScope._instance_dict.clear()
    metrics = [runner_of(Config.fromfile(path), tmp_path / path.stem, load_from=str(weights)).test()
               for path, weights in ((config, checkpoint), (tmp_path / 'plain.py', tmp_path / 'plain.pth'))]
    assert metrics[0] and metrics[0].keys() == metrics[1].keys()
    for key, value in metrics[0].items():
        # a pixel or a box on the border may change sides
        assert np.isclose(metrics[1][key], value, rtol=0.01, atol=0.1 if library == 'mmseg' else 0.002,
                          equal_nan=True), key


# ---------------------------------------------------------------------- the libraries' own scripts

def results_of(library, config, checkpoint, folder):
    """Metrics of the library's test.py, and its predictions."""
    out = folder / ('out' if library == 'mmseg' else 'out.pkl')
    call(library, 'test.py', config, checkpoint, '--work-dir', folder, '--out', out)
    metrics = json.loads(next(folder.glob('*/*.json')).read_text().splitlines()[-1])
    if library == 'mmseg':
        return metrics, [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(out.glob('*.png'))]
    return metrics, [instances(item['pred_instances']) for item in pickle.loads(out.read_bytes())]


@pytest.mark.parametrize('name', BY_SCRIPTS)
def test_by_the_scripts_of_the_library(name, scenes, tmp_path):
    library, cfg = library_of(name), small(name, tmp_path, scenes)
    config, run, plain = tmp_path / 'small.py', tmp_path / 'run', tmp_path / 'plain'
    cfg.log_level = 'INFO'
    cfg.dump(config)
    output = call(library, 'train.py', config, '--work-dir', run)
    assert output.count(': expanded ') == 2
    checkpoint = (run / 'last_checkpoint').read_text()
    done = subprocess.run([sys.executable, '-W', 'ignore', 'tools/deploy_fuse.py', str(config), checkpoint,
                           f'{plain}.pth', '--out-config', f'{plain}.py'], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0 and ' blocks fused' in done.stdout, done.stdout + done.stderr
    before, first = results_of(library, config, checkpoint, tmp_path / 'tested')
    after, second = results_of(library, f'{plain}.py', f'{plain}.pth', tmp_path / 'tested_plain')
    assert len(first) == len(second) == 6
    if library == 'mmdet':
        assert after['coco/bbox_mAP'] == pytest.approx(before['coco/bbox_mAP'], abs=0.002)
        for pair in zip(first, second):
            agree(*pair)
    else:
        assert after['mIoU'] == pytest.approx(before['mIoU'], abs=0.1) and before['mIoU'] > 0
        assert all((one != two).mean() < 0.001 for one, two in zip(first, second))
