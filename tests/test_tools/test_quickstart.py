"""The quickstart, shortened, as a user calls it."""
import os
import subprocess

import pytest
import torch

from ..runs import ROOT, needs_images


@needs_images
@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / '.venv' / '.ready').exists(), reason='tools/setup_env.sh has not been run here')
def test_trains_fuses_tests_and_reports_and_a_second_call_uses_what_is_there(tmp_path):
    options = ['train_cfg.max_epochs=2', 'param_scheduler.T_max=2', 'train_dataloader.dataset.indices=1024',
               'val_dataloader.dataset.indices=500', 'test_dataloader.dataset.indices=500']

    def call():
        done = subprocess.run(['bash', 'tools/quickstart.sh', *options], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, 'WORK_DIR': str(tmp_path / 'run'), 'OMP_NUM_THREADS': '1'})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = call()
    assert 'DyRep [epoch 2]: expanded' in first and 'blocks fused' in first
    accuracy = next(line.split('│')[2].split() for line in first.splitlines() if '│ accuracy/top1' in line)
    assert accuracy[0] == accuracy[2], 'augmented and fused'
    for name in ('history.png', 'structure.png'):
        assert (tmp_path / 'run' / name).read_bytes()[1:4] == b'PNG'
    weights = torch.load(tmp_path / 'run' / 'plain.pth', weights_only=False)['state_dict']
    second = call()
    assert 'expanded conv1' not in second and accuracy[0] in second
    again = torch.load(tmp_path / 'run' / 'plain.pth', weights_only=False)['state_dict']
    assert all(torch.equal(weights[key], again[key]) for key in weights)
