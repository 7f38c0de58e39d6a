"""The experiments of the paper: what is run, that it goes on, what is reported."""
import json
import statistics
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS

from mmdyrep import DyRepBackbone, DyRepHook
from mmdyrep.experiments import EXPERIMENTS, Run
from mmdyrep.experiments.command import Request, perform
from mmdyrep.experiments.jobs import commands, in_order, jobs_of, slug
from mmdyrep.experiments.parts import HOOK, SPACE
from mmdyrep.experiments.report import write_report
from mmdyrep.experiments.results import summary, table_of
from mmdyrep.experiments.running import Runner
from mmdyrep.experiments.spending import spent
from mmdyrep.models.building import build_model
from tests.configs import differing, read
from tests.runs import ROOT, needs_images, run_tool

NAMES = ['table1', 'table2', 'table3', 'table4', 'table5', 'table6', 'table7', 'table8', 'table9', 'table10', 'figure1',
         'figure4', 'figure5', 'figure6', 'figure7']


def runs(size: str) -> Dict[str, Tuple[str, Run]]:
    """Each training or counted network once, by its folder."""
    found = {}
    for name, experiment in EXPERIMENTS.items():
        for job in in_order(jobs_of(getattr(experiment, size), 1, Path(), {})):
            found.setdefault(str(job.folder.parent), (name, job.run))
    return found


RUNS = {**runs('full'), **runs('small')}


def merged(run: Run) -> Config:
    cfg = Config(read(run.config).to_dict())
    cfg.merge_from_dict({key: value for key, value in run.options.items() if '{' not in str(value)})
    return cfg


def test_all_tables_and_figures_are_there() -> None:
    assert list(EXPERIMENTS) == NAMES


@pytest.mark.parametrize('folder', RUNS)
def test_options_change_what_the_config_has_or_what_hook_backbone_and_loaders_take(folder: str) -> None:
    name, run = RUNS[folder]
    cfg = read(run.config).to_dict()
    free = {'dep', 'end', 'metric', 'interval', 'gamma_init', 'structure', 'space', 'pretrained', 'prefix', 'depth',
            'indices', 'num_workers', 'persistent_workers', 'calibration_batches', 'checkpoint', 'by_epoch'}
    for key in run.options:
        # mmengine takes no hook of this package out so
        assert run.options[key] is not None or key == HOOK + 'dep'
        group = cfg
        *path, last = key.split('.')
        for part in path:
            group = group[int(part)] if isinstance(group, list) else group[part]
        assert last in group or last in free, key
    assert all('{' in str(value) for value in run.options.values()) or differing(merged(run), read(run.config))
    # what is no change would be trained twice
    for key, value in run.options.items():
        if key in ('model.backbone.gamma_init', SPACE, HOOK + 'metric') or (
                key == HOOK + 'interval' and name == 'table9'):
            kept = Config(read(run.config).to_dict())
            kept.merge_from_dict({key: value})
            assert kept.model.backbone.get('gamma_init', 0.01) != 0.01 or differing(kept, read(run.config))


def changes_the_model(run: Run) -> bool:
    return any(key.startswith('model.') and '{' not in str(value) for key, value in run.options.items())


# the configs themselves are built in tests/test_configs
@pytest.mark.parametrize('folder', [folder for folder, (_, run) in RUNS.items() if changes_the_model(run)])
def test_each_run_that_changes_the_model_builds(folder: str) -> None:
    cfg = merged(RUNS[folder][1])
    backbone = build_model(cfg).backbone
    if cfg.model.backbone.get('static'):
        most = max(backbone.structure['ops'].values(), key=len)
        assert len(most) == {'repvgg': 3, 'dbb': 4, 'dyrep': 7}[cfg.model.backbone.space]
    if 'dyrep' in cfg.default_hooks and cfg.default_hooks.dyrep:
        assert isinstance(backbone, DyRepBackbone)


@pytest.mark.parametrize('folder', [folder for folder, (_, run) in RUNS.items()
                                    if any(key.startswith(HOOK) for key in run.options)])
def test_each_hook_that_is_changed_builds(folder: str) -> None:
    cfg = merged(RUNS[folder][1])
    hook = HOOKS.build(cfg.default_hooks.dyrep)
    assert isinstance(hook, DyRepHook)
    loop = cfg.train_cfg
    assert hook.by_epoch == ('max_epochs' in loop) and loop.get('type', 'EpochBasedTrainLoop') == (
        'EpochBasedTrainLoop' if hook.by_epoch else 'IterBasedTrainLoop')
    # an update behind the last iteration teaches nobody
    last = loop.max_epochs if hook.by_epoch else loop.max_iters
    assert hook.calendar.begin + hook.calendar.interval < last


def test_small_experiments_compare_the_rows_of_the_full_ones() -> None:
    for name, experiment in EXPERIMENTS.items():
        full, small = ({run.row: None for run in found} for found in (experiment.full, experiment.small))
        if name == 'table7':  # epochs are others
            assert len(full) == len(small) == 5
        elif name not in ('figure7', 'table9'):
            assert [row for row in small if row in full] == list(full)
        if experiment.picture == 'counts':
            continue
        # a folder for each
        for found in (experiment.full, experiment.small):
            folders = [job.folder for job in jobs_of(found, 2, Path('x'), {})]
            assert len(set(folders)) == 2 * len(found)


def test_what_experiments_have_in_common_is_trained_once() -> None:
    small = {name: {job.folder for job in jobs_of(experiment.small, 1, Path(), {})}
             for name, experiment in EXPERIMENTS.items()}
    dyrep = jobs_of(EXPERIMENTS['table2'].small, 1, Path(), {})[2].folder
    assert all(dyrep in small[name] for name in ('table6', 'table7', 'table9', 'table10', 'figure4', 'figure7'))
    assert small['figure1'] < small['table3'] and small['figure5'] < small['figure1'] and small['figure6'] < (
        small['table3'])
    assert len(small['table8'] - small['table3']) == 2
    # with another setting it is another run
    assert jobs_of(EXPERIMENTS['table2'].small, 1, Path(), {'a': 1})[2].folder != dyrep


def test_figures_of_the_paper() -> None:
    def of(name: str) -> Dict[Tuple[str, str], Any]:
        return {(run.row, run.column): run.paper for run in EXPERIMENTS[name].full}

    assert of('table6')['DyRep w/o Dep', 'CIFAR-10'] == dict(value=95.03, macs=658e6, parameters=29.3e6)
    assert of('table10')['grasp', 'CIFAR-100']['value'] == 74.73 and len(of('table10')) == 14
    assert of('table3')['DyRep', 'ResNet-34'] == dict(value=74.68, macs=4.72e9, parameters=33.1e6)
    assert of('table4')['ODBB', 'RepVGG-B3']['value'] == 80.97 and len(of('table4')) == 8
    assert of('table5')['DyRep, C+D', 'segmentation']['value'] == 78.49
    assert of('table7')['DyRep-400', 'CIFAR-10'] == dict(value=95.04, macs=587e6, parameters=20.3e6)
    assert of('table8')['DBB, 7', 'ResNet-50'] == dict(value=76.87, macs=8.02e9, parameters=48.3e6)
    assert of('table9')['DyRep, t = 5', 'CIFAR-10'] == dict(value=95.39, macs=1575e6, parameters=83.4e6)


def test_mean_deviation_and_interval() -> None:
    values = [89.89, 89.90, 89.64]
    found = summary(values)
    assert found['mean'] == pytest.approx(statistics.mean(values))
    assert found['deviation'] == pytest.approx(statistics.stdev(values))
    # the 95 % quantile of Student's t with 2 degrees of freedom
    assert found['interval'] == pytest.approx(4.30265 * statistics.stdev(values) / 3**0.5, rel=1e-4)
    assert summary([90.0]) == {'mean': 90.0, 'number': 1}


def test_seeds_of_a_row_are_taken_together(tmp_path: Path) -> None:
    results = [dict(row=row, column='Fashion-MNIST', seed=seed, value=top1 + seed, macs=1e6 * seed, parameters=5e4,
                    seconds=60.0) for seed in (1, 2) for row, top1 in (('Origin', 90.0), ('DyRep w/ Dep', 91.0))]
    table = table_of(results)
    assert [(entry['row'], entry['value']['mean'], entry['macs']['mean'], entry['seeds']) for entry in table] == [
        ('Origin', 91.5, 1.5e6, [1, 2]), ('DyRep w/ Dep', 92.5, 1.5e6, [1, 2])]
    paths = write_report(tmp_path, 'table6', EXPERIMENTS['table6'], results, {'DyRep w/o Dep': 'broken on purpose'},
                         ['one to come'], 'the command', {'train_cfg.max_epochs': 1})
    text = paths[0].read_text()
    row = next(line for line in text.splitlines() if line.startswith('| DyRep w/ Dep'))
    assert '| 92.50 ± 0.71 |' in row and '| 95.22 (597 M, 26.4 M) |' in row and "**the paper's**, CIFAR-10" in text
    assert 'broken on purpose' in text and 'one to come' in text and '`train_cfg.max_epochs=1`' in text
    assert json.loads(paths[1].read_text())['table'][0]['value']['values'] == [91.0, 92.0]
    assert paths[2].stat().st_size > 5000


TRAIN = '''
import pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
assert '--resume' in sys.argv and sys.argv[-1].startswith('randomness.seed=')
print('settings', sys.argv[-1])
with open(folder / 'calls', 'a') as file:
    file.write('x')
time.sleep(0.2)
if 'breaks' in str(folder):
    sys.exit('broken on purpose')
'''


def test_a_failure_does_not_stop_the_others_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(TRAIN)
    jobs = jobs_of([Run(row, 'x', f'{row}.py') for row in ('first', 'breaks', 'last')], 1, tmp_path / 'runs', {})
    told = []

    def run() -> Any:
        return Runner(tmp_path, 2, lambda job: {'value': 1.0},
                      lambda job, error: told.append((job.run.row, error))).run(jobs)

    errors = run()
    assert list(errors) == ['breaks, x, seed 1'] and 'status 1: broken on purpose' in errors['breaks, x, seed 1']
    assert [job.done for job in jobs] == [True, False, True] and spent(jobs[0].folder)['seconds'] > 0
    run()
    assert [(job.folder / 'calls').read_text() for job in jobs] == ['x', 'xx', 'x']
    assert sorted(row for row, _ in told) == ['breaks', 'breaks', 'first', 'first', 'last', 'last']


def test_names_of_folders_and_arguments() -> None:
    assert slug('DyRep w/o Dep') == 'dyrep-without-dep' and slug('gamma 0.01') == 'gamma-0.01'
    job = jobs_of([Run('a', 'b', 'dyrep/x.py', {'default_hooks.dyrep.dep': None})], 1, Path('w'), {'k': [1, 2]})[0]
    assert job.folder.parts[:1] == ('w', ) and job.folder.parent.name.startswith('dyrep-x-')
    assert commands(job, Path('/r')) == [('train.py', [
        '/r/configs/dyrep/x.py', '--work-dir', str(job.folder), '--resume', '--cfg-options',
        'default_hooks.dyrep.dep=None', 'randomness.seed=1', 'k=[1,2]'])]


@pytest.mark.parametrize('run', [EXPERIMENTS['table7'].full[1], EXPERIMENTS['table7'].small[1]], ids=['full', 'small'])
def test_what_is_retrained_has_the_structure_of_the_file_and_nothing_else(run: Run, tmp_path: Path) -> None:
    plain = build_model(merged(EXPERIMENTS['table7'].small[0]))
    structure = {'version': 1, 'ops': {DyRepBackbone(plain.backbone).candidates()[1]: ['kxk', '1x1', 'kx1']}}
    (tmp_path / 'structure_3.json').write_text(json.dumps(structure))
    cfg = merged(run)
    cfg.model.backbone.structure = str(tmp_path / 'structure_3.json')
    assert build_model(cfg).backbone.structure == structure and 'dyrep' not in cfg.default_hooks


def test_structures_and_backbones_come_from_the_run_before() -> None:
    jobs = jobs_of(EXPERIMENTS['table7'].full, 1, Path('w'), {})
    # t = 15: the last update up to epoch 200 is that of epoch 195
    for job, number in zip(jobs[1:], (195, 390)):
        (_, arguments), = commands(job, ROOT)
        assert job.before.folder == jobs[4].folder and 'dyrep' not in read(job.run.config).default_hooks
        assert 'model.backbone.static=False' in arguments
        assert f'model.backbone.structure={jobs[4].folder}/dyrep/structure_{number}.json' in arguments
    transfer = {(job.run.row, job.run.column): job for job in jobs_of(EXPERIMENTS['table5'].small, 1, Path('w'), {})}
    fuse, train = commands(transfer['DBB, C', 'detection'], ROOT)
    source = transfer['DBB, C', 'classification'].folder
    assert fuse[0] == 'deploy_fuse.py' and fuse[1][1:4] == [f'{source}/epoch_2.pth', f'{source}/backbone.pth',
                                                            '--backbone-only']
    assert f'model.backbone.init_cfg.checkpoint={source}/backbone.pth' in train[1]
    (_, train), = commands(transfer['DyRep, C+D', 'segmentation'], ROOT)
    assert f'model.backbone.pretrained={transfer["DyRep, C", "classification"].folder}/epoch_2.pth' in train


def test_what_a_run_starts_from_is_trained_before_it_once(tmp_path: Path) -> None:
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(TRAIN)
    good, bad = Run('good', 'x', 'a.py'), Run('bad', 'x', 'breaks.py')
    runs = [Run('first', 'x', 'b.py', before=good), Run('second', 'x', 'c.py', before=good),
            Run('third', 'x', 'd.py', before=bad)]
    told = []
    errors = Runner(tmp_path, 2, lambda job: {'value': 1.0}, lambda job, error: told.append(job.run.row)).run(
        jobs_of(runs, 1, tmp_path / 'runs', {}))
    assert told.index('good') < min(told.index('first'), told.index('second')) and told.count('good') == 1
    assert errors['third, x, seed 1'] == 'what it starts from has failed: bad, x, seed 1'
    assert not list((tmp_path / 'runs').glob('small-d*')) and set(told) == {'good', 'bad', 'first', 'second', 'third'}


@pytest.mark.parametrize('value', ['{checkpoint}', '{backbone}', '{structure:3}'])
def test_an_option_that_names_another_run_needs_one(value: str, tmp_path: Path) -> None:
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').write_text(TRAIN)
    alone = Run('alone', 'x', 'a.py', {'model.backbone.pretrained': value})
    jobs = jobs_of([alone, Run('next', 'x', 'b.py', before=alone)], 1, tmp_path / 'runs', {})
    with pytest.raises(ValueError, match='^alone, x, seed 1 starts from no other run: .*{checkpoint}, {backbone} or'):
        commands(jobs[0], tmp_path)
    # and what starts from it does not wait for ever
    told = []
    with pytest.raises(ValueError, match='^alone, x, seed 1 starts from no other run'):
        Runner(tmp_path, 2, lambda job: {}, lambda job, error: told.append(error)).run(jobs)
    assert told == ['what it starts from has failed: alone, x, seed 1']


def test_an_option_that_names_something_else_of_another_run_is_refused() -> None:
    source = Run('source', 'x', 'small/dyrep_vgg16-w8_b64_fashion-mnist.py')
    job, = jobs_of([Run('next', 'x', 'b.py', {'load_from': '{weights}'}, before=source)], 1, ROOT, {})
    with pytest.raises(ValueError, match="next, x, seed 1: '{weights}' is none of {checkpoint}, {backbone} and"):
        commands(job, ROOT)


def test_the_full_size_is_printed_for_a_cluster(tmp_path: Path, capsys: Any) -> None:
    assert not perform(Request(ROOT, 'table6', work_dir=tmp_path, seeds=2))
    lines = [line for line in capsys.readouterr().out.splitlines() if 'dist_train.sh' in line]
    assert len(lines) == 6 and ' 1 --work-dir' in lines[0] and 'randomness.seed=2' in lines[3]
    assert 'default_hooks.dyrep.dep=None' in lines[2]
    perform(Request(ROOT, 'table6', work_dir=tmp_path, slurm='gpu'))
    assert 'GPUS=1 bash tools/slurm_train.sh gpu table6-origin-1 ' in capsys.readouterr().out
    with pytest.raises(ValueError, match="no experiment 'table99'; there are table1"):
        perform(Request(ROOT, 'table99', work_dir=tmp_path))


@needs_images
@pytest.mark.slow
def test_a_small_experiment_end_to_end(tmp_path: Path) -> None:
    arguments = ['run_experiment.py', 'table6', '--small', '--work-dir', tmp_path]
    options = ['--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=96',
               'val_dataloader.dataset.indices=250', 'param_scheduler.T_max=1']
    done = run_tool(*arguments, *options)
    assert done.returncode == 0, done.stdout[-3000:]
    report = json.loads((tmp_path / 'small' / 'table6' / 'table6.json').read_text())
    assert [entry['row'] for entry in report['table']] == ['Origin', 'DyRep w/ Dep', 'DyRep w/o Dep']
    assert [run.get('grown') for run in report['runs']] == [None, 1, 1]
    again = run_tool(*arguments, *options)
    assert again.returncode == 1 and 'give --resume to go on' in again.stdout
    again = run_tool(*arguments, '--resume', *options)
    assert again.returncode == 0 and '3 of 3 runs are done' in again.stdout
    runs = list((tmp_path / 'small' / 'runs').glob('*/seed_1/2*'))
    assert len(runs) == 3
