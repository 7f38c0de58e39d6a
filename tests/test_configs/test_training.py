"""Configs of the paper's experiments train as a user trains them, on small folders of real images."""
import json
from pathlib import Path
from typing import Any, List

import pytest
import torch
from mmengine.config import Config

from mmdyrep.fileio import read_checkpoint, read_json
from mmdyrep.models.building import build_model
from tests.configs import read
from tests.dyrep_runs import updates
from tests.image_folders import cityscapes_folder, coco_folder, imagenet_folder
from tests.processes import launch
from tests.runs import needs_images, run_tool


def run(tool: str, *arguments: Any) -> str:
    """Output of a tool that succeeds."""
    done = run_tool(tool, *arguments)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def classification(data: Path, epochs: int, batch: int = 8) -> List[str]:
    """Options for a small ImageNet."""
    return ['--cfg-options', f'train_cfg.max_epochs={epochs}', f'train_dataloader.dataset.data_root={data}',
            f'val_dataloader.dataset.data_root={data}', f'test_dataloader.dataset.data_root={data}',
            f'train_dataloader.batch_size={batch}', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
            'test_dataloader.num_workers=0', 'train_dataloader.dataset.pipeline.1.scale=32',
            *(f'{split}_dataloader.dataset.pipeline.1.scale=32' for split in ('val', 'test')),
            *(f'{split}_dataloader.dataset.pipeline.2.crop_size=32' for split in ('val', 'test')),
            'default_hooks.dyrep.interval=1', 'default_hooks.dyrep.calibration_batches=1']


@needs_images
@pytest.mark.slow
def test_resnet18_trains_through_an_update_resumes_and_is_fused(tmp_path):
    config, work_dir = 'configs/dyrep/resnet18_8xb32_in1k.py', tmp_path / 'run'
    data = imagenet_folder(tmp_path / 'imagenet')
    run('train.py', config, '--work-dir', work_dir, *classification(data, 1))
    first = updates(work_dir)
    assert len(first) == 1 and len(first[0]['grown']) == 1 and first[0]['drift'] < 1e-3
    run('train.py', config, '--work-dir', work_dir, '--resume', *classification(data, 2))
    both = updates(work_dir)
    assert len(both) == 2 and both[0] == first[0] and both[1]['grown']
    assert len(read_json(work_dir / 'dyrep' / 'structure_2.json')['ops']) in (1, 2)
    run('test.py', config, work_dir / 'epoch_2.pth', '--work-dir', tmp_path / 'test', *classification(data, 2))
    run('deploy_fuse.py', config, work_dir / 'epoch_2.pth', tmp_path / 'plain.pth', '--images', 8,
        *classification(data, 2))
    plain = build_model(read('plain/resnet18_8xb32-plain_in1k.py'))
    plain.load_state_dict(read_checkpoint(tmp_path / 'plain.pth')['state_dict'])


def losses(work_dir: Path) -> List[float]:
    """Losses of the training, in order."""
    file, = work_dir.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    return [entry['loss'] for entry in entries if 'loss' in entry]


@needs_images
@pytest.mark.slow
def test_twins_compute_the_same_up_to_the_first_update(tmp_path):
    data = imagenet_folder(tmp_path / 'imagenet')
    found = []
    for config in ('plain/resnet18_8xb32-plain_in1k', 'dyrep/resnet18_8xb32_in1k'):
        options = [option for option in classification(data, 2, batch=4)
                   if '.dyrep.' not in option or config.startswith('dyrep/')]
        run('train.py', f'configs/{config}.py', '--work-dir', tmp_path / config, *options,
            'default_hooks.logger.interval=1', 'val_cfg=None', 'val_dataloader=None', 'val_evaluator=None')
        found.append(losses(tmp_path / config))
    plain, dyrep = found
    assert len(plain) == len(dyrep) == 8
    # 4 iterations, then an update, which keeps the function as far as a batch has the statistics of the calibration
    assert plain[:4] == dyrep[:4] and len(set(plain)) == 8
    assert plain[4:] != dyrep[4:] and dyrep[4] == pytest.approx(plain[4], rel=1e-3)


@needs_images
@pytest.mark.slow
def test_resnet50_in_two_processes_and_its_backbone_in_a_detector(tmp_path):
    data, work_dir = imagenet_folder(tmp_path / 'imagenet', 8, 4), tmp_path / 'run'
    config = 'configs/dyrep/resnet50_8xb32_in1k.py'
    done = launch('dist_train.sh', config, 2, '--work-dir', work_dir, *classification(data, 1, batch=2))
    assert done.returncode == 0, done.stdout[-3000:]
    assert 'GPU number: 2' in done.stdout and updates(work_dir)[0]['grown']
    augmented, fused = work_dir / 'epoch_1.pth', tmp_path / 'backbone.pth'
    run('deploy_fuse.py', config, augmented, fused, '--backbone-only')

    for stage, file in (('c', fused), ('cd', augmented)):
        cfg = read(f'detection/faster-rcnn_r50-dyrep-{stage}_fpn_1x_coco.py').copy()
        if stage == 'c':
            cfg.model.backbone.init_cfg.checkpoint = str(file)
        else:
            cfg.model.backbone.pretrained = str(file)
        model = build_model(cfg)
        model.init_weights()
        state = read_checkpoint(file)['state_dict']
        state = {key.replace('backbone.', ''): value for key, value in state.items() if not key.startswith('head.')}
        assert list(model.backbone.state_dict()) == list(state)
        assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())
        if stage == 'cd':
            assert list(model.backbone.structure['ops']) == [updates(work_dir)[0]['grown'][0]['op']]


def test_a_backbone_for_pspnet_has_the_keys_of_pspnet_s(tmp_path):
    for pretraining, name in (('resnetv1c50', 'r50'), ('resnet50', 'r50b')):
        source = build_model(read(f'dyrep/{pretraining}_8xb32_in1k.py')).backbone
        source.expand('layer1.0.conv2')
        torch.save(dict(state_dict={f'backbone.{key}': value for key, value in source.state_dict().items()}),
                   tmp_path / 'augmented.pth')
        torch.save(dict(state_dict=source.to_plain().state_dict()), tmp_path / 'fused.pth')
        for stage, file in (('c', 'fused.pth'), ('cd', 'augmented.pth')):
            cfg = read(f'segmentation/pspnet_{name}-d8-dyrep-{stage}_4xb2-40k_cityscapes-512x1024.py').copy()
            cfg.model.pretrained = str(tmp_path / file)
            model = build_model(cfg)
            model.init_weights()
            state = (source if stage == 'cd' else source.to_plain()).state_dict()
            assert list(model.backbone.state_dict()) == list(state)
            assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())


@needs_images
@pytest.mark.slow
def test_pspnet_grows_in_its_training_is_tested_and_fused(tmp_path):
    data, work_dir = cityscapes_folder(tmp_path / 'cityscapes'), tmp_path / 'run'
    config = 'configs/segmentation/pspnet_r50-d8-dyrep-d_4xb2-40k_cityscapes-512x1024.py'
    options = ['--cfg-options', 'model.pretrained=None', 'train_cfg.max_iters=2', 'val_cfg=None',
               'default_hooks.dyrep.interval=1', 'default_hooks.dyrep.calibration_batches=1', 'val_dataloader=None',
               'val_evaluator=None', f'train_dataloader.dataset.data_root={data}', 'train_dataloader.num_workers=0',
               'train_dataloader.persistent_workers=False', 'train_dataloader.dataset.pipeline.2.scale=(64,64)',
               'train_dataloader.dataset.pipeline.3.crop_size=(32,32)', 'model.data_preprocessor.size=(32,32)',
               'default_hooks.checkpoint.interval=2']
    run('train.py', config, '--work-dir', work_dir, *options)
    assert [update['iter'] for update in updates(work_dir)] == [1, 2]
    assert all(update['grown'] and update['drift'] < 1e-3 for update in updates(work_dir))
    output = run('test.py', config, work_dir / 'iter_2.pth', '--work-dir', tmp_path / 'test', '--cfg-options',
                 *for_tests(data), 'test_dataloader.dataset.pipeline.1.scale=(64,64)')
    assert 'mIoU: ' in output
    run('deploy_fuse.py', config, work_dir / 'iter_2.pth', work_dir / 'plain.pth', '--out-config',
        work_dir / 'plain.py')
    plain = build_model(Config.fromfile(work_dir / 'plain.py'))
    plain.load_state_dict(read_checkpoint(work_dir / 'plain.pth')['state_dict'])


@needs_images
@pytest.mark.slow
def test_faster_rcnn_grows_in_its_training_is_tested_and_fused(tmp_path):
    data, work_dir = coco_folder(tmp_path / 'coco'), tmp_path / 'run'
    config = 'configs/detection/faster-rcnn_r50-dyrep-d_fpn_1x_coco.py'
    run('train.py', config, '--work-dir', work_dir,
        '--cfg-options', 'model.backbone.backbone.init_cfg=None', 'train_cfg.max_epochs=1', 'val_evaluator=None',
        'val_dataloader=None', 'val_cfg=None', 'default_hooks.dyrep.calibration_batches=1',
        f'train_dataloader.dataset.data_root={data}', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False', 'train_dataloader.dataset.pipeline.2.scale=(64,64)')
    update, = updates(work_dir)
    assert update['grown'] and update['drift'] < 1e-3
    # stage 1 and the stem are frozen
    assert not update['grown'][0]['op'].startswith(('conv1', 'layer1'))
    output = run('test.py', config, work_dir / 'epoch_1.pth', '--work-dir', tmp_path / 'test', '--cfg-options',
                 *for_tests(data), 'test_dataloader.dataset.pipeline.1.scale=(64,64)',
                 f'test_evaluator.ann_file={data}/annotations/instances_val2017.json')
    assert 'bbox_mAP' in output or 'The testing results of the whole dataset is empty' in output
    run('deploy_fuse.py', config, work_dir / 'epoch_1.pth', work_dir / 'plain.pth', '--out-config',
        work_dir / 'plain.py')
    plain = build_model(Config.fromfile(work_dir / 'plain.py'))
    plain.load_state_dict(read_checkpoint(work_dir / 'plain.pth')['state_dict'])


def for_tests(data: Path) -> List[str]:
    """Options for the test set in a small folder."""
    return [f'test_dataloader.dataset.data_root={data}', 'test_dataloader.num_workers=0',
            'test_dataloader.persistent_workers=False']
