"""The benchmark measures what it says, and runs."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mmdyrep import benchmark
from mmdyrep.benchmark import cases, measuring, reference
from mmdyrep.reparam import merging

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')


def test_rounds_are_interleaved_and_the_first_does_not_count(monkeypatch):
    order, clock = [], iter(range(10**6))
    monkeypatch.setattr(measuring.time, 'perf_counter', lambda: next(clock))
    # a call of b lets the clock go on
    times = measuring.interleaved({'a': lambda: order.append('a'),
                                   'b': lambda: order.append('b') or [next(clock) for _ in range(2)]}, 3, CPU)
    assert order == ['a', 'b'] * 4
    assert times['a'] == (1, 1) and times['b'] == (3, 3)


def test_kept_bytes_count_each_storage_once_and_no_parameters():
    x = torch.randn(2, 4, 8, 8).requires_grad_()
    conv = nn.Conv2d(4, 4, 3, padding=1)
    assert measuring.kept_bytes(conv, x) == x.numel() * 4
    assert measuring.kept_bytes(nn.Sequential(conv, nn.Conv2d(4, 8, 1)), x) == 2 * x.numel() * 4
    assert measuring.kept_bytes(nn.Sequential(nn.ReLU(inplace=True), nn.ReLU(inplace=True)), x * 1) == x.numel() * 4


def test_peak_bytes_are_those_of_tensors_that_are_there_at_the_same_time():
    def run() -> None:
        first = torch.empty(1 << 20, dtype=torch.uint8)
        del first
        second, third = torch.empty(2 << 20, dtype=torch.uint8), torch.empty(3 << 20, dtype=torch.uint8)
        del second, third
    assert measuring.peak_bytes(run, 100, CPU) == (5 << 20) + 100


@pytest.mark.parametrize('ours, theirs', [(('kxk', '1x1', '1x1_kxk', '1x1_avg'), reference.dbb),
                                          (tuple(cases.BRANCHES), reference.seven)])
def test_reference_blocks_compute_what_ours_do(ours, theirs):
    block, plain = cases.our_block(4, ours).double(), theirs(4).double()
    with torch.no_grad():
        for branch, twin in zip(block.branches.values(), plain.branches):
            convs = [module for module in twin.modules() if isinstance(module, nn.Conv2d)]
            own = [module for module in branch.modules() if isinstance(module, nn.Conv2d)]
            assert len(convs) == len(own)
            for a, b in zip(convs, own):
                a.weight.copy_(b.weight)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    # the block was expanded with its function kept: its original's norm has another gamma and beta
    norm, original = plain.branches[0][1], block.origin.bn
    norm.load_state_dict(original.state_dict())
    torch.testing.assert_close(plain(x), block(x))


def test_fixed_blocks_run_as_one_convolution_in_training():
    net = cases.fixed(cases.grown('resnet18', 1))
    block = net.get_submodule(list(net.structure['ops'])[0])
    assert block.training and net.bn1.training and not merging.why_branchwise(block)


def test_a_quick_run_and_what_it_prints(capsys, tmp_path):
    result = benchmark.run(benchmark.Options(only=('blocks', ), quick=True))
    rows = {row['name']: row for row in result['sections']['blocks']}
    assert rows['plain conv + BN']['time_ratio'] == 1 and rows['seven nn.Sequential']['memory_ratio'] > 5
    assert rows['block, fixed statistics']['memory_ratio'] < 0.6
    benchmark.print_report(result)
    out = capsys.readouterr().out
    assert all(name in out for name in rows) and 'threads of' in out and '--quick' in out
    benchmark.plot(result, tmp_path / 'bars.png')
    assert (tmp_path / 'bars.png').stat().st_size > 10000
    with pytest.raises(ValueError, match="unknown sections .'speed'"):
        benchmark.run(benchmark.Options(only=('speed', )))


@pytest.mark.slow
def test_the_command_runs_all_sections(tmp_path):
    file = tmp_path / 'out.json'
    command = [sys.executable, 'tools/benchmark.py', '--quick', '--threads', '1', '--json', str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert set(found['sections']) == set(benchmark.SECTIONS) and found['machine']['threads'] == 1
    assert all(row['seconds'] > 0 for rows in found['sections'].values() for row in rows)
    assert 'Peak' in done.stdout and 'STAGE' not in done.stdout + done.stderr
