"""Studies of this package: what is run, on which images and seeds, and what is reported."""
import json
import re
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, init_default_scope

from mmdyrep import DyRepBackbone, DyRepHook
from mmdyrep.experiments import EXPERIMENTS, STUDIES, Run
from mmdyrep.experiments.command import Request, perform
from mmdyrep.experiments.jobs import commands, config_of, jobs_of
from mmdyrep.experiments.page import filled, part, update_page
from mmdyrep.experiments.parts import HOOK
from mmdyrep.experiments.report import markdown, write_report
from mmdyrep.experiments.results import read_result
from mmdyrep.experiments.studies import (
    BATCH,
    BEST,
    DBB,
    PLAIN,
    RANDOM,
    SEVEN,
    SEVEN_ONLINE,
    TRIED,
    find,
    run as run_of,
)
from mmdyrep.models.building import build_model
from tests.configs import ROOT, differing, read
from tests.runs import needs_images

SHORT = [name for name in STUDIES if not name.endswith('_long')]
RUNS = {f'{name}: {run.row}': run for name in SHORT for run in STUDIES[name].small}


def merged(run: Run) -> Config:
    cfg = Config(read(run.config).to_dict())
    cfg.merge_from_dict(dict(run.options))
    return cfg


@pytest.mark.parametrize('name', RUNS)
def test_each_run_builds_and_no_option_is_lost(name: str) -> None:
    run = RUNS[name]
    cfg = merged(run)
    # a key of two spellings would be added and heeded by nobody
    paths = differing(cfg, read(run.config))
    known = {'indices', 'num_workers', 'persistent_workers', 'test_mode', 'split', 'branch_init', 'type', 'identity',
             'alpha', 'max_depth', 'online', 'keep_norm', 'space', 'dep', 'num_grow', 'end', 'metric', 'interval',
             'max_epochs', 'val_interval', 'T_max', 'threshold', 'max_keep_ckpts'}
    assert {re.sub(r'\[\d+\]', '', path).split('.')[-1] for path in paths} <= known
    backbone = build_model(cfg).backbone
    if 'dyrep' not in run.config and 'dbb' not in run.config:
        assert not isinstance(backbone, DyRepBackbone)
        return
    told = backbone._dyrep.told
    wanted = {key.split('.')[2]: value for key, value in run.options.items() if key.startswith('model.backbone.')}
    assert told['online'] == wanted.get('online', False)
    start = cfg.model.backbone.get('branch_init', 'default')
    assert told['branch_init'] == start
    if cfg.model.backbone.get('static'):
        assert max(map(len, backbone.structure['ops'].values())) == {'repvgg': 3, 'dbb': 4, 'dyrep': 7}[
            cfg.model.backbone.space]
        assert backbone._dyrep.keep_norm == (cfg.model.backbone.space == 'dyrep') and 'dyrep' not in cfg.default_hooks
    else:
        hook = HOOKS.build(cfg.default_hooks.dyrep)
        assert isinstance(hook, DyRepHook)
        ours = {key.split('.')[-1]: value for key, value in run.options.items() if key.startswith(HOOK)}
        assert hook.interval == 1 and hook.metric == ours.get('metric', 'synflow')
        assert hook.end == ours.get('end') and hook.policy.num_grow == ours.get('num_grow', 1)
        assert (hook.policy.threshold is None) == ('dep' in ours)


def test_true_dbb_begins_as_the_identity_and_has_no_norm_behind() -> None:
    backbone = build_model(merged(RUNS[f'growth_vgg16: {DBB}'])).backbone
    # the backbone's own initialization has the last word otherwise
    backbone.init_weights()
    weights = [weight.flatten(1).detach().numpy() for name, weight in backbone.named_parameters()
               if name.endswith('branches.1x1_kxk.conv1.weight')]
    assert len(weights) == 13 and all((weight == np.eye(len(weight))).all() for weight in weights)
    assert not backbone._dyrep.keep_norm


def test_seeds_that_report_and_seeds_that_chose_have_none_in_common() -> None:
    for network in ('vgg16', 'resnet18'):
        for name in (f'growth_{network}', f'growth_{network}_long'):
            seeds = [{job.seed for job in jobs_of(study.small, 5, Path(), {}, study.first_seed)}
                     for study in (STUDIES[name], STUDIES[f'choose_{network}'])]
            assert seeds[0] == {4, 5, 6, 7, 8}
        chosen = jobs_of(STUDIES[f'choose_{network}'].small, 3, Path(), {})
        assert {job.seed for job in chosen} == {1, 2, 3} and len({job.folder for job in chosen}) == 27


def test_four_times_as_long_everything_keeps_its_share() -> None:
    for network in ('vgg16', 'resnet18'):
        short, long = ({run.row: run for run in STUDIES[name].small}
                       for name in (f'growth_{network}', f'growth_{network}_long'))
        assert list(short) == list(long) and len(short) == 10
        for row in short:
            one, four = merged(short[row]), merged(long[row])
            keys = {path for path in differing(one, four)}
            factors = {four_ / one_ for one_, four_ in ((one.train_cfg[key], four.train_cfg[key])
                                                        for key in ('max_epochs', 'val_interval'))}
            assert factors == {4.0} and four.param_scheduler.T_max == 60
            hook = {path for path in keys if path.startswith(HOOK)}
            assert keys - hook == {'train_cfg.max_epochs', 'train_cfg.val_interval', 'param_scheduler.T_max'}
            assert hook <= {HOOK + 'interval', HOOK + 'end'}
            if 'dyrep' in one.default_hooks:
                assert four.default_hooks.dyrep.interval == 4 * one.default_hooks.dyrep.interval
                if 'end' in one.default_hooks.dyrep:
                    assert four.default_hooks.dyrep.end == 4 * one.default_hooks.dyrep.end


def test_random_growth_differs_from_the_recommended_one_in_the_metric_alone() -> None:
    runs = {run.row: merged(run) for run in STUDIES['growth_vgg16'].small}
    assert differing(runs[BEST], runs[RANDOM]) == [HOOK + 'metric']
    assert differing(runs[BEST], runs[BATCH]) == ['model.backbone.online']
    assert differing(runs[SEVEN], runs[SEVEN_ONLINE]) == ['model.backbone.online']
    best, = (run for run in STUDIES['growth_vgg16'].small if run.row == BEST)
    # what is recommended is among what was tried
    assert best.options in [run_of(BEST, 'vgg16', 1, 'dyrep', settings).options for settings in TRIED.values()]


def test_the_config_of_the_recommended_settings_is_what_the_studies_run() -> None:
    best, = (run for run in STUDIES['growth_vgg16'].small if run.row == BEST)
    plain, = (run for run in STUDIES['growth_vgg16'].small if run.row == PLAIN)
    # but for the length of the training and the loaders, which are the plain run's too
    cfg = read('small/dyrep_vgg16-w8-recommended_b64_fashion-mnist.py')
    cfg.merge_from_dict(dict(plain.options))
    assert [key for key in differing(merged(best), cfg) if not key.startswith('recommended_')] == []
    # for 120 epochs there are as many updates, and they have the same share of the training
    long, short = read('_base_/dyrep_recommended.py').recommended_hook, cfg.default_hooks.dyrep
    assert long.end // long.interval == short.end // short.interval
    assert long.end / 120 == pytest.approx(short.end / 15)


def test_each_thing_tried_differs_from_the_lead() -> None:
    lead, *others = TRIED.values()
    assert len(TRIED) == 8
    for number, settings in enumerate(others):
        assert settings != lead and settings not in others[:number]


@needs_images
def test_settings_are_chosen_on_training_images_that_nothing_is_trained_on() -> None:
    init_default_scope('mmpretrain')
    images = {}
    for network in ('vgg16', 'resnet18'):
        run = STUDIES[f'choose_{network}'].small[1]
        cfg = merged(run)
        for part_ in ('train', 'val'):
            dataset = DATASETS.build({**cfg[f'{part_}_dataloader'].dataset, 'lazy_init': False})
            images[part_] = [dataset.get_data_info(place)['img'].tobytes() for place in range(len(dataset))]
        report = merged(STUDIES[f'growth_{network}'].small[1])
        test = DATASETS.build(report.val_dataloader.dataset)
        assert (len(images['train']), len(images['val']), len(test)) == (12000, 10000, 10000)
        assert report.train_dataloader.dataset == cfg.train_dataloader.dataset
        tested = {test.get_data_info(place)['img'].tobytes() for place in range(len(test))}
        # byte for byte: the set has one picture twice
        assert not set(images['train']) & set(images['val']) and len(set(images['val']) & tested) == 0


def test_arguments_of_a_run_come_through_the_command_line() -> None:
    job = jobs_of(STUDIES['choose_vgg16'].small, 1, Path('w'), {})[4]
    (_, arguments), = commands(job, ROOT)
    assert 'model.backbone.branch_init.type=split' in arguments and 'model.backbone.branch_init.alpha=0.5' in arguments
    assert 'val_dataloader.dataset.indices=-10000' in arguments and 'default_hooks.dyrep.dep=None' in arguments
    assert config_of(job, ROOT).val_dataloader.dataset.indices == -10000


def results(name: str, rows: Tuple[str, ...], seeds: int = 5) -> List[Dict[str, Any]]:
    column = STUDIES[name].small[0].column
    return [dict(row=row, column=column, seed=seed, metric='accuracy/top1', value=90 + place / 4 + (seed * 7 % 5) / 50
                 + (seed * place % 3) / 100, macs=5e6 * (1 + place), executed=5e6 * (1 + place / 2), parameters=2e5,
                 seconds=200.0 * (1 + place), cpu_seconds=160.0 * (1 + place), curve=[(15, 90)])
            for place, row in enumerate(rows) for seed in range(4, 4 + seeds)]


def test_report_of_a_study_has_pairs_costs_claims_and_a_picture(tmp_path: Path) -> None:
    study = STUDIES['growth_vgg16']
    found = results('growth_vgg16', (PLAIN, BEST, DBB))
    found = [result for result in found if (result['row'], result['seed']) != (DBB, 6)]
    del found[-1]['cpu_seconds']
    paths = write_report(tmp_path, 'growth_vgg16', study, found, {}, ['one to come'], 'the command', {})
    text, content = paths[0].read_text(), json.loads(paths[1].read_text())
    assert len(content['runs']) == len(found) and 'curve' not in content['runs'][0] and content['runs'][0]['seed'] == 4
    pair = content['table'][1]['pairs'][PLAIN]
    assert pair['seeds'] == [4, 5, 6, 7, 8] and pair['mean'] == pytest.approx(np.mean(pair['values']))
    row = next(line for line in text.splitlines() if line.startswith(f'| {BEST} '))
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[3] == f'{pair["mean"]:+.2f} [{pair["low"]:+.2f}, {pair["high"]:+.2f}] (5)'
    assert cells[5].endswith('(4)') and '[' not in cells[5]
    assert cells[7:12] == ['4, 5, 6, 7, 8', '10 M', '7.5 M', '5.3 (2.00x)', '6.7 (2.00x)']
    assert f'{DBB}, 15 epochs, and {PLAIN}: seed 6' in text and 'left out of the difference' in text
    assert '| Recommended DyRep is above the plain network, 15 epochs |' in text and text.count('| yes |') == 1
    assert 'open: fewer than 5 pairs' in text and 'expanded percentiles' in text and 'one to come' in text
    assert paths[2].stat().st_size > 5000


def test_every_claim_finds_its_difference(tmp_path: Path) -> None:
    for name in ('growth_vgg16', 'growth_resnet18_long'):
        study = STUDIES[name]
        content = json.loads(write_report(tmp_path, name, study, results(name, tuple(
            run.row for run in study.small)), {}, [], 'the command', {})[1].read_text())
        pairs = {entry['row']: entry['pairs'] for entry in content['table']}
        assert len(study.claims) == 8 and all('low' in pairs[claim.row][claim.reference] for claim in study.claims)
        assert 'open: fewer' not in (tmp_path / f'{name}.md').read_text()


def test_page_of_results_says_what_the_json_says() -> None:
    page, folder = ROOT / 'docs' / 'results.md', ROOT / 'docs' / 'experiments'
    text = page.read_text(encoding='utf-8')
    assert sorted(re.findall(r'<!-- begin (\w+) -->', text)) == sorted([*STUDIES, 'answer'])
    assert filled(text, folder, 'experiments/') == text
    for name, study in STUDIES.items():
        if (folder / f'{name}.json').exists():
            content = json.loads((folder / f'{name}.json').read_text())
            picture = f'{name}.png' if (folder / f'{name}.png').exists() else None
            assert (folder / f'{name}.md').read_text() == markdown(study, content, picture)
        else:
            assert f'None of its {len(study.small)} small runs has been made yet.' in part(name, folder)


def test_readme_says_what_the_json_says() -> None:
    table = json.loads((ROOT / 'docs' / 'experiments' / 'growth_vgg16.json').read_text())['table']
    rows = {entry['row']: entry for entry in table}
    pair, times = rows[BEST]['pairs'][PLAIN], [rows[row]['cpu_seconds']['mean'] for row in (BEST, PLAIN)]
    text = re.sub(r'\s+', ' ', (ROOT / 'README.md').read_text(encoding='utf-8'))
    assert f'ends {pair["mean"]:+.2f} points above its plain twin' in text and len(pair['seeds']) == 5
    assert f'95 % interval {pair["low"]:+.2f} to {pair["high"]:+.2f}' in text
    assert f'for {times[0] / times[1]:.2f} times the CPU time' in text
    assert ('a gain could not be shown' in text) == (pair['low'] <= 0)
    paper = {(run.row, run.column): run.paper for run in EXPERIMENTS['table3'].full}
    gains = [(paper['DyRep', net]['value'] - paper['Origin', net]['value'],
              paper['DyRep', net]['macs'] / paper['Origin', net]['macs'])
             for net in dict.fromkeys(column for _, column in paper)]
    assert (f'{min(g for g, _ in gains):.1f} to {max(g for g, _ in gains):.1f} points on ImageNet for '
            f'{min(m for _, m in gains):.2f} to {max(m for _, m in gains):.2f} times the MACs') in text


def test_reports_of_studies_come_into_the_page_above_the_folder(tmp_path: Path) -> None:
    write_report(tmp_path / 'reports' / 'growth_vgg16', 'growth_vgg16', STUDIES['growth_vgg16'],
                 results('growth_vgg16', (PLAIN, BEST)), {}, [], 'the command', {})
    folder = tmp_path / 'docs' / 'experiments'
    folder.mkdir(parents=True)
    (folder.parent / 'results.md').write_text('By hand.\n<!-- begin growth_vgg16 -->\n<!-- end growth_vgg16 -->\nToo.')
    (folder / 'index.md').write_text('Nothing.')
    assert update_page(tmp_path / 'reports', folder) == ['growth_vgg16']
    text = (folder.parent / 'results.md').read_text()
    assert text.startswith('By hand.') and text.endswith('Too.') and f'| {BEST} | 15 epochs | 90.' in text
    assert '](experiments/growth_vgg16.png)' in text and '](experiments/growth_vgg16.md)' in text
    assert f'10 small runs, 5 seeds each. **Not run:** {STUDIES["growth_vgg16"].small[1].row}' in text
    assert (folder / 'growth_vgg16.json').exists() and (folder / 'index.md').read_text() == 'Nothing.'


def test_the_answer_counts_what_is_shown_refuted_and_open(tmp_path: Path) -> None:
    # the recommended rows stand above plain, DBB far above them, nothing else is there
    write_report(tmp_path, 'growth_vgg16', STUDIES['growth_vgg16'], results('growth_vgg16', (PLAIN, BEST, DBB)), {}, [],
                 'the command', {})
    rows = {line.split(' | ')[0][2:]: line.strip('| ').split(' | ')[1:]
            for line in part('answer', tmp_path).splitlines()[2:]}
    below = 'Recommended DyRep is at most 0.1 below static DBB, in at most 0.6 of its time'
    assert rows['VGG-16, 15 epochs'] == ['15', 'Recommended DyRep is above the plain network', below, '6']
    assert rows['ResNet-18, 15 epochs'] == ['0', '-', '-', 'all']
    assert set(rows) == {f'{net}, {epochs} epochs' for net in ('VGG-16', 'ResNet-18') for epochs in (15, 60)}


def test_studies_are_found_by_name_and_are_small_alone(tmp_path: Path) -> None:
    assert find('table6') is EXPERIMENTS['table6'] and not set(STUDIES) & set(EXPERIMENTS)
    with pytest.raises(ValueError, match='growth_vgg16 is a study of this package, at small size alone; give --small'):
        perform(Request(ROOT, 'growth_vgg16', work_dir=tmp_path))
    assert perform(Request(ROOT, 'growth_vgg16', small=True, seeds=2, report_only=True, work_dir=tmp_path)) is False
    waiting = json.loads((tmp_path / 'small' / 'growth_vgg16' / 'growth_vgg16.json').read_text())['waiting']
    assert len(waiting) == 20 and waiting[0] == f'{PLAIN}, 15 epochs, seed 4' and waiting[-1].endswith('seed 5')


def test_what_is_executed_is_less_only_where_blocks_run_as_one_convolution(tmp_path: Path) -> None:
    costs = {}
    for row in (PLAIN, SEVEN, SEVEN_ONLINE):
        folder = tmp_path / row
        (folder / 'a' / 'vis_data').mkdir(parents=True)
        (folder / 'a' / 'vis_data' / 'scalars.json').write_text('{"accuracy/top1": 90.0, "step": 15}\n')
        merged(next(run for run in STUDIES['growth_vgg16'].small if run.row == row)).dump(folder / 'config.py')
        costs[row] = read_result(folder)
    plain, seven, online = costs.values()
    assert plain['executed'] == plain['macs'] == online['executed']
    assert seven['executed'] == seven['macs'] == online['macs'] > 2.5 * plain['macs']
    assert plain['value'] == 90
