"""tools/run_small_chain.sh: its order and what it does again, and detection and segmentation in earnest, shortened."""
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmdyrep.analysis import run_report
from mmdyrep.fileio import write_checkpoint
from tests.runs import DATA, ROOT, needs_images

SCRIPT = ROOT / 'tools' / 'run_small_chain.sh'
# stands for the interpreter: notes what it is asked for, leaves what the script looks at
INTERPRETER = '''#!/usr/bin/env bash
[ "$1" = -W ] && shift 2
echo "$*" >> "$RECORD"
[[ "$*" == *"$BREAK"* ]] && [ -n "$BREAK" ] && { echo broken here; exit 1; }
if [ "$1" = tools/train.py ]; then
    [ "$3" = --work-dir ] && mkdir -p "$4" && echo "$4/last.pth" > "$4/last_checkpoint"
    case "$2" in *dyrep_* | *-dyrep-d_* | *-dyrep-cd_*) echo DyRepBackbone ;; esac > "$4/$(basename "$2")"
fi
exit 0
'''


class Chain:
    """The script with a stand-in for the interpreter."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, folder / 'record'
        (folder / 'python').write_text(INTERPRETER)
        (folder / 'python').chmod(0o755)

    def __call__(self, broken: str = '', **options: str) -> subprocess.CompletedProcess:
        self.record.write_text('')
        return subprocess.run(['bash', str(SCRIPT)], capture_output=True, text=True, env={
            **os.environ, 'PYTHON_OF_CHAIN': str(self.folder / 'python'), 'WORK_DIR': str(self.folder / 'run'),
            'RECORD': str(self.record), 'BREAK': broken, 'FASHION_SCENES': 'scenes', **options})

    def calls(self) -> List[List[str]]:
        return [line.split() for line in self.record.read_text().splitlines()]

    def of(self, tool: str) -> Dict[str, int]:
        """Configs that a tool was called with, and when."""
        return {call[1]: place for place, call in enumerate(self.calls()) if call[0] == f'tools/{tool}.py'}


def test_the_light_set_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    for name, text in (('tools/setup_env.sh', 'exit 0'), ('.venv/bin/python', '#!/bin/sh\nexit 1'),
                       ('tools/run_small_chain.sh', SCRIPT.read_text())):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    variables = {name: value for name, value in os.environ.items() if name != 'PYTHON_OF_CHAIN'}
    done = subprocess.run(['bash', tmp_path / 'tools' / 'run_small_chain.sh'], capture_output=True, text=True,
                          env=variables)
    assert done.returncode == 1 and 'STACK=maintained bash' in done.stderr and not (tmp_path / 'work_dirs').exists()


def test_order_of_the_steps_and_nothing_twice(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    done = chain(DETECT='train_cfg.max_epochs=1 a.b=2', SCENES='--train 3', JOBS='3')
    assert done.returncode == 0, done.stderr
    calls, trained, tested_ = chain.calls(), chain.of('train'), chain.of('test')
    assert calls[0] == ['tools/dataset_converters/fashion_scenes.py', '--out', 'scenes', '--train', '3']
    assert calls[-1] == ['tools/analysis_tools/report_chain.py', str(tmp_path / 'run')]
    assert len(trained) == 10 and all((ROOT / path).is_file() for path in trained)
    # 10 as trained; 5 with DyRep are fused and tested again
    assert len(tested_) == 15 and sum(path.endswith('fused/plain.py') for path in tested_) == 5
    backbone = [place for place, call in enumerate(calls) if '--backbone-only' in call]
    assert len(backbone) == 2
    for path, place in trained.items():
        assert (place < backbone[0]) == ('resnet18-w16_b64' in path) and tested_[path] > place
        assert (calls[place][-3:] == ['--cfg-options', 'train_cfg.max_epochs=1', 'a.b=2']) == ('faster-rcnn' in path)
    link = tmp_path / 'run' / 'backbones' / 'dyrep_augmented.pth'
    assert link.is_symlink() and os.readlink(link).endswith('dyrep_resnet18-w16_b64/last.pth')

    assert chain().returncode == 0
    assert [call[0] for call in chain.calls()] == [calls[0][0], calls[-1][0]]


def test_a_step_that_failed_is_told_and_done_by_the_next_call(tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    name = 'faster-rcnn_r18-w16-dyrep-d_fpn_b8'
    done = chain(broken=f'tools/train.py configs/small/{name}')
    assert done.returncode != 0 and 'broken here' in done.stderr and f'FAILED: {name}, train' in done.stderr
    assert f'{name}/train.log' in done.stderr and not any('report_chain' in call[0] for call in chain.calls())
    assert chain().returncode == 0
    # those that were under way or done by then are not trained again
    assert len(chain.of('train')) < 8
    assert f'configs/small/{name}_fashion-scenes.py' in chain.of('train')
    assert all('--resume' in call for call in chain.calls() if call[0] == 'tools/train.py')


@pytest.fixture(scope='module')
def start(tmp_path_factory) -> Path:
    """Small data sets, and a backbone to start from."""
    folder = tmp_path_factory.mktemp('start')
    subprocess.run([sys.executable, 'tools/dataset_converters/fashion_scenes.py', '--source', str(DATA), '--out',
                    str(folder / 'scenes'), '--kinds', 'coco', 'cityscapes', '--train', '16', '--val', '4'], cwd=ROOT,
                   check=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdout=subprocess.DEVNULL)
    cfg = Config.fromfile(ROOT / 'configs/small/resnet18-w16_b64_fashion-scenes.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    backbone = MODELS.build(cfg.model).backbone
    backbone.train()
    with torch.no_grad():
        backbone(torch.randn(64, 3, 64, 64))  # statistics of its own activations
    write_checkpoint(folder / 'plain.pth', {'state_dict': backbone.state_dict()})
    return folder


def one(start: Path, run: Path, name: str, **options: str) -> subprocess.CompletedProcess:
    if not (run / 'backbones').exists():
        (run / 'backbones').mkdir(parents=True)
        os.link(start / 'plain.pth', run / 'backbones' / 'plain.pth')
    return subprocess.run(['bash', str(SCRIPT), '--one', name], capture_output=True, text=True, env={
        **os.environ, 'PYTHON_OF_CHAIN': sys.executable, 'WORK_DIR': str(run),
        'FASHION_SCENES': str(start / 'scenes'), **options})


@needs_images
@pytest.mark.slow
def test_detection_grows_is_fused_and_finds_the_same(start: Path, tmp_path: Path) -> None:
    name = 'faster-rcnn_r18-w16-dyrep-d_fpn_b8'
    done = one(start, tmp_path, name, DETECT='train_cfg.max_epochs=2 default_hooks.dyrep.calibration_batches=2')
    assert done.returncode == 0, done.stdout + done.stderr
    history = json.loads((tmp_path / name / 'dyrep' / 'history.json').read_text())
    assert [len(entry['grown']) for entry in history['updates']] == [1, 1]
    # the statistics are frozen, and so are the first stage and the stem
    assert all(item['op'].startswith(('layer2', 'layer3', 'layer4')) for entry in history['updates']
               for item in entry['grown'])

    from mmdet.apis import inference_detector, init_detector
    picture = next((start / 'scenes/coco/images/val').iterdir())
    cfgs = Config.fromfile(tmp_path / name / f'{name}_fashion-scenes.py'), Config.fromfile(
        tmp_path / name / 'fused/plain.py')
    found = []
    for cfg, path in zip(cfgs, (tmp_path / name / 'epoch_2.pth', tmp_path / name / 'fused/plain.pth')):
        cfg.model.test_cfg.rcnn.score_thr = 0.0
        found.append(inference_detector(init_detector(cfg, str(path), device='cpu'), str(picture)).pred_instances)
    assert len(found[0]) == len(found[1]) == 30
    assert np.allclose(found[0].scores, found[1].scores, atol=1e-5)
    assert np.allclose(found[0].bboxes, found[1].bboxes, atol=1e-2)


@needs_images
@pytest.mark.slow
def test_segmentation_grows_by_iterations_is_fused_and_has_the_same_miou(start: Path, tmp_path: Path) -> None:
    name = 'pspnet_r18-w16-d8-dyrep-d_b8'
    options = ('train_cfg.max_iters=4 train_cfg.val_interval=4 default_hooks.checkpoint.interval=2 '
               'default_hooks.dyrep.interval=2 default_hooks.dyrep.calibration_batches=2')
    done = one(start, tmp_path, name, SEGMENT=options)
    assert done.returncode == 0, done.stdout + done.stderr
    history = json.loads((tmp_path / name / 'dyrep' / 'history.json').read_text())
    assert [entry['iter'] for entry in history['updates']] == [2, 4]
    before, after = (run_report.tested(tmp_path / name / test) for test in ('test', 'test_fused'))
    assert before['mIoU'] > 1 and before == pytest.approx(after, abs=0.02)
    again = one(start, tmp_path, name, SEGMENT=options)
    assert again.returncode == 0 and again.stdout == ''
