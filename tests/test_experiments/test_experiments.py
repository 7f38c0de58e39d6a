"""The experiments of the paper: what is run, that it goes on, what is reported."""
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmdyrep.experiments import EXPERIMENTS, Run
from mmdyrep.experiments.command import Request, perform
from mmdyrep.experiments.report import write_report
from mmdyrep.experiments.results import summary, table_of
from mmdyrep.experiments.running import Runner, command, jobs_of, slug, spent
from tests.configs import read
from tests.runs import ROOT, needs_images, run_tool

RUNS = [(name, run) for name, experiment in EXPERIMENTS.items() for run in (*experiment.full, *experiment.small)]


@pytest.mark.parametrize(('name', 'run'), RUNS, ids=lambda value: value if isinstance(value, str) else value.row)
def test_options_change_what_the_config_has_or_the_hook_and_the_backbone_take(name: str, run: Run) -> None:
    cfg = read(run.config)
    for key in run.options:
        if key.startswith(('train_cfg.', 'param_scheduler.')):
            first, second = key.split('.')
            assert second in cfg[first]
            continue
        group = cfg.default_hooks.dyrep if 'dyrep' in key else cfg.model.backbone
        assert group.type == ('DyRepHook' if 'dyrep' in key else 'DyRepBackbone')
        assert key.split('.')[-1] in ('metric', 'dep', 'end', 'gamma_init', 'interval')
    merged = Config(cfg.to_dict())
    merged.merge_from_dict(dict(run.options))
    assert not run.options or merged.to_dict() != cfg.to_dict() or run.options.get(
        'default_hooks.dyrep.metric') == 'synflow' or run.options.get('model.backbone.gamma_init') == 0.01


def test_small_experiments_compare_the_rows_of_the_full_ones() -> None:
    for name, experiment in EXPERIMENTS.items():
        full, small = ({run.row: None for run in runs} for runs in (experiment.full, experiment.small))
        if name != 'figure7':  # epochs are others there
            assert [row for row in small if row in full] == list(full)
        # a folder for each
        for runs in (experiment.full, experiment.small):
            folders = [job.folder for job in jobs_of(runs, 2, Path('x'), {})]
            assert len(set(folders)) == 2 * len(runs)


def test_figures_of_the_paper() -> None:
    rows = {run.row: run.paper for run in EXPERIMENTS['table6'].full}
    assert rows['DyRep w/o Dep'] == dict(top1=95.03, macs=658e6, parameters=29.3e6)
    table = {(run.row, run.column): run.paper['top1'] for run in EXPERIMENTS['table10'].full}
    assert table['grasp', 'CIFAR-100'] == 74.73 and table['vote', 'CIFAR-10'] == 95.03 and len(table) == 14


def test_mean_deviation_and_interval() -> None:
    values = [89.89, 89.90, 89.64]
    found = summary(values)
    assert found['mean'] == pytest.approx(statistics.mean(values))
    assert found['deviation'] == pytest.approx(statistics.stdev(values))
    # the 95 % quantile of Student's t with 2 degrees of freedom
    assert found['interval'] == pytest.approx(4.30265 * statistics.stdev(values) / 3**0.5, rel=1e-4)
    assert summary([90.0]) == {'mean': 90.0, 'number': 1}


def test_seeds_of_a_row_are_taken_together(tmp_path: Path) -> None:
    results = [dict(row=row, column='Fashion-MNIST', seed=seed, top1=top1 + seed, macs=1e6 * seed, parameters=5e4,
                    seconds=60.0) for seed in (1, 2) for row, top1 in (('Origin', 90.0), ('DyRep w/ Dep', 91.0))]
    table = table_of(results)
    assert [(entry['row'], entry['top1']['mean'], entry['macs']['mean'], entry['seeds']) for entry in table] == [
        ('Origin', 91.5, 1.5e6, [1, 2]), ('DyRep w/ Dep', 92.5, 1.5e6, [1, 2])]
    paths = write_report(tmp_path, 'table6', EXPERIMENTS['table6'], results, {'DyRep w/o Dep': 'broken on purpose'},
                         ['one to come'], 'the command', {'train_cfg.max_epochs': 1})
    text = paths[0].read_text()
    row = next(line for line in text.splitlines() if line.startswith('| DyRep w/ Dep'))
    assert '| 92.50 ± 0.71 |' in row and '| 95.22 (597 M, 26.4 M) |' in row and "**the paper's**, CIFAR-10" in text
    assert 'broken on purpose' in text and 'one to come' in text and '`train_cfg.max_epochs=1`' in text
    assert json.loads(paths[1].read_text())['table'][0]['top1']['values'] == [91.0, 92.0]
    assert paths[2].stat().st_size > 5000


TRAIN = '''
import pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
assert '--resume' in sys.argv and sys.argv[-1].startswith('randomness.seed=')
print('settings', sys.argv[-1])
with open(folder / 'calls', 'a') as file:
    file.write('x')
if 'breaks' in str(folder):
    sys.exit('broken on purpose')
'''


def test_a_failure_does_not_stop_the_others_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(TRAIN)
    jobs = jobs_of([Run(row, 'x', 'a.py') for row in ('first', 'breaks', 'last')], 1, tmp_path / 'runs', {})
    told = []

    def run() -> Any:
        return Runner(tmp_path, 2, lambda job: {'top1': 1.0}, lambda job, error: told.append((job.run.row, error))).run(
            jobs)

    errors = run()
    assert list(errors) == ['breaks, x, seed 1'] and 'status 1: broken on purpose' in errors['breaks, x, seed 1']
    assert [job.done for job in jobs] == [True, False, True] and spent(jobs[0]) > 0
    run()
    assert [(job.folder / 'calls').read_text() for job in jobs] == ['x', 'xx', 'x']
    assert sorted(row for row, _ in told) == ['breaks', 'breaks', 'first', 'first', 'last', 'last']


def test_names_of_folders_and_arguments() -> None:
    assert slug('DyRep w/o Dep') == 'dyrep-without-dep' and slug('gamma 0.01') == 'gamma-0.01'
    job = jobs_of([Run('a', 'b', 'dyrep/x.py', {'default_hooks.dyrep.dep': None})], 1, Path('w'), {'k': [1, 2]})[0]
    assert command(job, Path('/r')) == ['/r/configs/dyrep/x.py', '--work-dir', 'w/b/a/seed_1', '--resume',
                                        '--cfg-options', 'default_hooks.dyrep.dep=None', 'randomness.seed=1', 'k=[1,2]']


def test_the_full_size_is_printed_for_a_cluster(tmp_path: Path, capsys: Any) -> None:
    assert not perform(Request(ROOT, 'table6', work_dir=tmp_path, seeds=2))
    lines = [line for line in capsys.readouterr().out.splitlines() if 'dist_train.sh' in line]
    assert len(lines) == 6 and 'default_hooks.dyrep.dep=None' in lines[2] and 'randomness.seed=2' in lines[3]
    perform(Request(ROOT, 'table6', work_dir=tmp_path, slurm='gpu'))
    assert 'GPUS=8 bash tools/slurm_train.sh gpu table6-origin-1 ' in capsys.readouterr().out
    with pytest.raises(ValueError, match="no experiment 'table99'; there are table2"):
        perform(Request(ROOT, 'table99', work_dir=tmp_path))


def test_names_are_listed_one_a_line() -> None:
    done = run_tool('run_experiment.py', '--list')
    assert done.returncode == 0 and done.stdout.split() == list(EXPERIMENTS)


@needs_images
@pytest.mark.slow
def test_a_small_experiment_end_to_end(tmp_path: Path) -> None:
    arguments = ['run_experiment.py', 'table6', '--small', '--work-dir', tmp_path, '--cfg-options',
                 'train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=192', 'val_dataloader.dataset.indices=250',
                 'param_scheduler.T_max=1']
    done = run_tool(*arguments)
    assert done.returncode == 0, done.stdout[-3000:]
    report = json.loads((tmp_path / 'small' / 'table6' / 'table6.json').read_text())
    assert [entry['row'] for entry in report['table']] == ['Origin', 'DyRep w/ Dep', 'DyRep w/o Dep']
    assert [run.get('grown') for run in report['runs']] == [None, 1, 1]
    again = run_tool(*arguments)
    assert again.returncode == 1 and 'give --resume to go on' in again.stdout
    again = run_tool(*arguments, '--resume')
    assert again.returncode == 0 and '3 of 3 runs are done' in again.stdout
    runs = list((tmp_path / 'small' / 'table6').glob('*/*/seed_1/2*'))
    assert len(runs) == 3
