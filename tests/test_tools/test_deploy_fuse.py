"""deploy_fuse.py as a user calls it."""
import os
import subprocess
import sys

import pytest
import torch

from ..backbones import unfriendly
from ..runs import ROOT, differences, needs_images, small_config, train


def fuse(*arguments):
    return subprocess.run([sys.executable, '-W', 'ignore', 'tools/deploy_fuse.py', *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})


def test_broken_checkpoint_leaves_no_file(tmp_path):
    (tmp_path / 'broken.pth').write_bytes(b'PK\x03\x04 half of it')
    done = fuse('configs/small/dyrep_resnet18-w8_b64_fashion-mnist.py', tmp_path / 'broken.pth', tmp_path / 'a.pth')
    assert done.returncode == 1 and 'broken.pth can not be read' in done.stderr and 'Traceback' not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['broken.pth']


def test_config_without_dyrep_is_refused(tmp_path):
    torch.save({'state_dict': unfriendly(torch.nn.BatchNorm2d(2)).state_dict()}, tmp_path / 'a.pth')
    done = fuse('configs/small/resnet18-w8_b64_fashion-mnist.py', tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert done.returncode == 1 and 'no DyRepBackbone' in done.stderr and not (tmp_path / 'b.pth').exists()


@needs_images
@pytest.mark.slow
def test_trained_fused_and_tested_in_the_plain_network(tmp_path):
    cfg = small_config(train_cfg=dict(max_epochs=3))
    cfg.model.backbone = dict(type='DyRepBackbone', backbone=cfg.model.backbone)
    cfg.default_hooks.dyrep = dict(type='DyRepHook', interval=1, calibration_batches=4)
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.val_dataloader, cfg.val_evaluator, dict()
    done = train(cfg, tmp_path / 'run')
    assert done.returncode == 0, done.stdout
    config, source = tmp_path / 'run.py', tmp_path / 'run' / 'epoch_3.pth'
    done = fuse(config, source, tmp_path / 'plain.pth', '--out-config', tmp_path / 'plain.py', '--images', 64)
    assert done.returncode == 0 and '3 blocks fused' in done.stdout, done.stdout + done.stderr

    def tested(config, checkpoint, out):
        done = subprocess.run([sys.executable, 'tools/test.py', str(config), str(checkpoint), '--out', str(out),
                               '--work-dir', str(tmp_path / 'tests')], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
        assert done.returncode == 0, done.stderr
        import pickle
        return [item['pred_label'] for item in pickle.loads(out.read_bytes())]

    # the pipeline of these tests augments at random: the same for both by their seed
    augmented = tested(config, source, tmp_path / 'a.pkl')
    assert len(augmented) == 64 and not differences(augmented, tested(tmp_path / 'plain.py', tmp_path / 'plain.pth',
                                                                      tmp_path / 'b.pkl'))
