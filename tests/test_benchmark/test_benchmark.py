"""The benchmark measures what it says, and runs."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from mmdyrep import benchmark
from mmdyrep.benchmark import cases, histories, measuring, networks, reference, running, updates
from mmdyrep.dynamics import macs
from mmdyrep.engine.history import History
from mmdyrep.fileio import write_json
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


@pytest.mark.skipif(not Path('/proc/stat').exists(), reason='the system does not tell what its cores do')
def test_what_others_take_of_the_machine_is_not_what_this_process_takes():
    def spin(seconds):
        end = time.time() + seconds
        while time.time() < end:
            pass

    alone = running._Others()
    spin(1)
    alone = alone.share()
    shared = running._Others()
    with subprocess.Popen([sys.executable, '-c', 'while True: pass']) as other:
        spin(1)
        found = shared.share()
        other.kill()
    assert 0 <= alone <= 1 and found > min(0.6, alone + 0.3 / os.cpu_count())


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
    net = cases.fixed(networks.build('resnet18', lambda net: networks.grown(net, 1)))
    block = net.get_submodule(list(net.structure['ops'])[0])
    assert block.training and net.bn1.training and not merging.why_branchwise(block)


def test_a_reference_network_has_the_branches_of_ours():
    """Both have the norms behind, too, and as many MACs."""
    ours = networks.build('resnet18', networks.wraps('resnet18')['static DBB'])
    theirs = networks.build('resnet18', networks.wraps('resnet18')['DBB of nn.Sequential'])
    assert macs.parameters(theirs) == macs.parameters(ours)
    x = torch.zeros(1, 3, 64, 64)
    assert macs.count(theirs, x).total == macs.count(ours, x).total
    assert [tuple(out.shape) for out in (theirs(x.repeat(2, 1, 1, 1)), ours(x.repeat(2, 1, 1, 1)))] == [(2, 1000)] * 2


def test_an_online_network_trains_as_one_convolution_per_block():
    net = networks.build('resnet18', networks.wraps('resnet18')['four blocks, online'])
    assert len(net.structure['ops']) == 4
    assert not any(merging.why_branchwise(net.get_submodule(op)) for op in net.structure['ops'])


def test_scores_and_updates_are_told_in_iterations():
    rows = {row['name']: row for row in updates.measured('vgg16', benchmark.Options(quick=True, batch=2, rounds=1))}
    assert list(rows) == ['iteration', 'scores, synflow', 'scores, snip_bn', 'update, 1 op', 'update, 4 ops',
                          'update, 1 op, online with 4 blocks']
    for row in rows.values():
        assert row['time_ratio'] == pytest.approx(row['seconds'] / rows['iteration']['seconds'], rel=0.5)
    assert rows['scores, snip_bn']['time_ratio'] < 0.5 < rows['update, 1 op']['time_ratio']


def run_of_three_structures(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    one = {'ops': {'features.0.conv': ['kxk', '1x1']}}
    two = {'ops': {**one['ops'], 'features.1.conv': ['kxk', '1x1', 'residual']}}
    for number, structure in ((1, one), (2, one), (3, two)):
        write_json(folder / f'structure_{number}.json', dict(structure, version=1))
    costs = dict(macs=dict(backbone=1), parameters=dict(backbone=1))
    history = History()
    history.begin(0, costs, dict(by_epoch=True, input_shape=[1, 32, 32]))
    for epoch, iteration in ((1, 20), (2, 40), (3, 50)):
        history.add(dict(costs, epoch=epoch, iter=iteration, grown=[], cut=[]))
    history.iterations = 100
    history.write(folder)
    return folder / 'history.json'


def test_structures_of_a_run_count_by_their_share_of_its_iterations(tmp_path):
    content, found = histories.spans(run_of_three_structures(tmp_path))
    assert content['iterations'] == 100
    assert [list(span.ops) for span in found] == [[], ['features.0.conv'], ['features.0.conv', 'features.1.conv']]
    assert [span.share for span in found] == pytest.approx([0.2, 0.3, 0.5])


def test_the_time_of_a_training_is_the_weighted_sum_of_its_iterations(tmp_path, monkeypatch):
    file = run_of_three_structures(tmp_path)
    times = {('plain', 0): (2.0, 1.0), **{(name, number): (seconds, seconds / 2)
             for name, much in (('the run', 1), ('the run, online', 0.5))
             for number, seconds in enumerate((2.0, 2 + much, 2 + 2 * much))}}
    built = {}

    def interleaved(runs, *_):
        built.update(runs)
        return {key: measuring.Times(*times[key]) for key in runs}

    monkeypatch.setattr(histories, 'interleaved', interleaved)
    monkeypatch.setattr(histories, 'peak_bytes', lambda run, *_: len(run.model.structure['ops']) + 1
                        if hasattr(run.model, 'structure') else 2)
    config = 'configs/small/dyrep_vgg16-w8_b64_fashion-mnist.py'
    rows = histories.measured(benchmark.Options(quick=True, rounds=1, history=(config, str(file))))
    assert [row['seconds'] for row in rows] == pytest.approx([2, 2 * .2 + 3 * .3 + 4 * .5, 2 * .2 + 2.5 * .3 + 3 * .5])
    assert [row['time_ratio'] for row in rows] == pytest.approx([1, 1.65, 1.325])
    assert [row['memory_ratio'] for row in rows] == [1, 1.5, 1.5]
    last = built['the run, online', 2].model
    assert last.online and not built['the run', 2].model.online
    assert list(last.structure['ops']) == ['features.0.conv', 'features.1.conv']


def test_a_quick_run_and_what_it_prints(capsys, tmp_path):
    result = benchmark.run(benchmark.Options(only=('blocks', ), quick=True))
    rows = {row['name']: row for row in result['sections']['blocks']}
    assert rows['plain conv + BN']['time_ratio'] == 1 and rows['seven nn.Sequential']['memory_ratio'] > 5
    assert rows['block, fixed statistics']['memory_ratio'] < 0.6
    benchmark.print_report(result)
    out = capsys.readouterr().out
    assert all(name in out for name in rows) and 'threads of' in out and '--quick' in out
    page = benchmark.markdown(result, 'blocks', 'bars.png')
    plain = next(line for line in page.splitlines() if 'plain conv + BN' in line)
    seconds = rows['plain conv + BN']['seconds']
    assert plain.split('|')[1:-1] == [' 64@56 ', ' plain conv + BN ', f' {1e3 * seconds:.4g} ', ' 1.00 ',
                                      f' {rows["plain conv + BN"]["kept_bytes"] / 2**20:.1f} ', ' 1.00 ']
    assert len({line.count('|') for line in page.splitlines() if line.startswith('|')}) == 1 and '(bars.png)' in page
    benchmark.plot(result, tmp_path / 'bars.png')
    assert (tmp_path / 'bars.png').stat().st_size > 10000
    with pytest.raises(ValueError, match="unknown sections .'speed'"):
        benchmark.run(benchmark.Options(only=('speed', )))


@pytest.mark.slow
def test_the_command_runs_all_sections(tmp_path):
    file = tmp_path / 'out.json'
    run = ['configs/small/dyrep_vgg16-w8_b64_fashion-mnist.py', str(run_of_three_structures(tmp_path / 'dyrep'))]
    command = [sys.executable, 'tools/benchmark.py', '--quick', '--threads', '1', '--json', str(file),
               '--plot', str(tmp_path / 'out.png'), '--markdown', str(tmp_path / 'out.md'), '--networks', 'vgg16',
               '--history', *run]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert set(found['sections']) == set(benchmark.SECTIONS) and found['machine']['threads'] == 1
    assert '![Time, ratio to the plain one](out.png)' in (tmp_path / 'out.md').read_text()
    assert (tmp_path / 'out.png').exists()
    assert all(row['seconds'] > 0 for rows in found['sections'].values() for row in rows)
    assert 'Peak' in done.stdout and 'STAGE' not in done.stdout + done.stderr
