"""The analysis tools, run as a user runs them, on the files of a real training with DyRep that was resumed."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools' / 'analysis_tools'


def run(tool, *args, ok=True):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'COLUMNS': '160'}
    done = subprocess.run([sys.executable, str(tool), *map(str, args)], capture_output=True, text=True, env=env)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    assert ok or 'Traceback' not in done.stderr, 'an error of use is one message'
    return done.stdout if ok else done.stderr


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """Configs with and without DyRep, and the work dir of a run of 2 epochs, resumed for a third."""
    work = tmp_path_factory.mktemp('work')
    rng = np.random.default_rng(0)
    for number in range(24):
        path = work / 'images' / str(number % 2) / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 128, (16, 16), np.uint8) + np.uint8(100 * (number % 2)))
    pipeline = [dict(type='LoadImageFromFile', color_type='grayscale'), dict(type='RandomCrop', crop_size=16),
                dict(type='PackInputs')]
    loader = dict(batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                  dataset=dict(type='CustomDataset', data_root=str(work / 'images'), pipeline=pipeline))
    backbone = dict(type='ResNet_CIFAR', depth=18, in_channels=1, stem_channels=4, base_channels=4, out_indices=(3, ))
    cfg = Config(dict(
        custom_imports=dict(imports=['mmdyrep'], allow_failed_imports=False), default_scope='mmpretrain',
        model=dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'),
                   head=dict(type='LinearClsHead', num_classes=2, in_channels=32, topk=(1, ))),
        data_preprocessor=dict(num_classes=2, mean=[128], std=[64], to_rgb=False),
        train_dataloader=loader, val_dataloader=loader, val_evaluator=dict(type='Accuracy', topk=(1, )),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)), val_cfg=dict(), randomness=dict(seed=0),
        train_cfg=dict(by_epoch=True, max_epochs=2), default_hooks=dict(logger=dict(type='LoggerHook', interval=2)),
        visualizer=dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])))
    cfg.dump(work / 'plain.py')
    cfg.model.backbone = dict(type='DyRepBackbone', backbone=backbone)
    cfg.default_hooks.dyrep = dict(type='DyRepHook', interval=1)
    cfg.dump(work / 'dyrep.py')
    train = ROOT / 'tools' / 'train.py'
    run(train, work / 'dyrep.py', '--work-dir', work / 'run')
    run(train, work / 'dyrep.py', '--work-dir', work / 'run', '--resume', '--cfg-options', 'train_cfg.max_epochs=3')
    return work


def test_complexity_of_a_checkpoint_is_that_of_the_history(work, tmp_path):
    text = run(TOOLS / 'get_complexity.py', work / 'dyrep.py', '--structure', work / 'run' / 'epoch_3.pth',
               '--json', tmp_path / 'c.json')
    counts = json.loads((tmp_path / 'c.json').read_text())
    history = json.loads((work / 'run' / 'dyrep' / 'history.json').read_text())
    assert counts['macs']['augmented'] == history['updates'][-1]['macs']
    assert counts['macs']['plain'] == history['start']['macs']
    assert counts['parameters']['augmented'] == history['updates'][-1]['parameters']
    assert counts['shape'] == [1, 16, 16]
    assert re.search(r'TOTAL .*\d', text) and 'layer1.0.conv1' in text and 'kxk, 1x1, 1x1_kxk' in text


def test_complexity_of_a_plain_config(work):
    assert 'No op is expanded' in run(TOOLS / 'get_complexity.py', work / 'plain.py', '--shape', '32', '32')
    from_json = run(TOOLS / 'get_complexity.py', work / 'plain.py', '--structure',
                    work / 'run' / 'dyrep' / 'structure_3.json')
    assert 'augmented' in from_json


def test_complexity_refuses_a_structure_of_another_network_and_writes_nothing(work, tmp_path):
    (tmp_path / 's.json').write_text('{"version": 1, "ops": {"layer9.conv1": ["kxk", "1x1"]}}')
    message = run(TOOLS / 'get_complexity.py', work / 'dyrep.py', '--structure', tmp_path / 's.json', '--json',
                  tmp_path / 'out.json', ok=False)
    assert 'layer9.conv1' in message
    assert 'nowhere.py' in run(TOOLS / 'get_complexity.py', tmp_path / 'nowhere.py', ok=False)
    assert [path.name for path in tmp_path.iterdir()] == ['s.json']


def test_structures_of_a_checkpoint_and_of_json_are_drawn(work, tmp_path):
    checkpoint, structure = work / 'run' / 'epoch_3.pth', work / 'run' / 'dyrep' / 'structure_3.json'
    op = next(iter(json.loads(structure.read_text())['ops']))
    assert 'network.png' in run(TOOLS / 'plot_structure.py', checkpoint, tmp_path / 'network.png')
    assert cv2.imread(str(tmp_path / 'network.png')).shape[1] > 600
    run(TOOLS / 'plot_structure.py', structure, tmp_path / 'block.svg', '--op', op)
    text = (tmp_path / 'block.svg').read_text()
    assert f'<!-- {op} in structure_3.json -->' in text and '<!-- 1x1_kxk -->' in text


def test_structure_plots_refuse_what_can_not_be_drawn_and_write_nothing(work, tmp_path):
    tool, checkpoint = TOOLS / 'plot_structure.py', work / 'run' / 'epoch_3.pth'
    broken, out = tmp_path / 'broken.pth', tmp_path / 'out.png'
    broken.write_bytes(checkpoint.read_bytes()[:2000])
    ops = json.loads((work / 'run' / 'dyrep' / 'structure_3.json').read_text())['ops']
    message = run(tool, checkpoint, out, '--op', 'layer9.conv1', ok=False)
    assert all(op in message for op in ops)
    assert 'broken.pth' in run(tool, broken, out, ok=False)
    assert '.png, .pdf, .svg' in run(tool, checkpoint, tmp_path / 'out.gif', ok=False)
    assert [path.name for path in tmp_path.iterdir()] == ['broken.pth']


def test_the_history_of_a_resumed_run_is_drawn(work, tmp_path):
    out = tmp_path / 'h.svg'
    assert len(list((work / 'run').glob('*/vis_data/scalars.json'))) == 2
    assert run(TOOLS / 'plot_history.py', work / 'run', out) == f'written: {out}\n'
    text = out.read_text()
    for words in ('Validation: accuracy/top1', 'Training loss, mean of each epoch', 'Last accuracy/top1 against cost',
                  'Structure over time: run'):
        assert f'<!-- {words} -->' in text
    history = json.loads((work / 'run' / 'dyrep' / 'history.json').read_text())
    for op in {item['op'] for entry in history['updates'] for item in entry['grown']}:
        assert op.split('.branches.')[0] in text


def test_history_plots_refuse_what_is_no_run_and_write_nothing(work, tmp_path):
    tool, out = TOOLS / 'plot_history.py', tmp_path / 'out.png'
    (tmp_path / 'empty').mkdir()
    assert 'empty' in run(tool, work / 'run', tmp_path / 'empty', out, ok=False)
    assert 'accuracy/top1' in run(tool, work / 'run', out, '--metric', 'mIoU', ok=False)
    assert [path.name for path in tmp_path.iterdir()] == ['empty']
