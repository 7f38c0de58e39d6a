"""Runs that an earlier report tells of are not trained again."""
import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

from mmdyrep.experiments.command import Request, perform
from mmdyrep.experiments.earlier import take_over
from mmdyrep.experiments.experiment import Run
from mmdyrep.experiments.jobs import RESULT, Job, jobs_of
from mmdyrep.experiments.studies import PLAIN, STUDIES
from mmdyrep.fileio import write_json

ROOT = Path(__file__).resolve().parents[2]
STUDY = 'growth_vgg16'


def done(jobs: List[Job]) -> None:
    for job in jobs:
        job.folder.mkdir(parents=True)
        write_json(job.folder / RESULT, {
            'metric': 'accuracy/top1', 'value': 90 + job.seed / 10, 'steps': 15, 'macs': 7e6, 'executed': 7e6,
            'parameters': 1e5, 'seconds': 100.0, 'cpu_seconds': 90.0})


def jobs_in(work_dir: Path, seeds: int = 2) -> List[Job]:
    study = STUDIES[STUDY]
    return jobs_of(study.small, seeds, Request(ROOT, STUDY, small=True, work_dir=work_dir).runs, {}, study.first_seed)


def report_of(work_dir: Path) -> Dict[str, Any]:
    return json.loads((work_dir / 'small' / STUDY / f'{STUDY}.json').read_text())


def request(work_dir: Path, **options: Any) -> Request:
    return Request(ROOT, STUDY, small=True, seeds=2, report_only=True, work_dir=work_dir, **options)


def test_a_report_of_a_folder_that_is_gone_is_gone_on_with(tmp_path: Path) -> None:
    first = [job for job in jobs_in(tmp_path / 'a') if job.run.row == PLAIN]
    done(first)
    perform(request(tmp_path / 'a'))
    perform(request(tmp_path / 'b', earlier=tmp_path / 'a' / 'small' / STUDY / f'{STUDY}.json'))
    here, there = report_of(tmp_path / 'a'), report_of(tmp_path / 'b')
    assert len(there['runs']) == 2 and there['runs'] == here['runs'] and there['table'] == here['table']
    # and again from that one
    perform(request(tmp_path / 'c', earlier=tmp_path / 'b' / 'small' / STUDY / f'{STUDY}.json'))
    assert report_of(tmp_path / 'c')['runs'] == here['runs']


def test_other_settings_and_seeds_are_not_taken_and_what_is_done_stays(tmp_path: Path) -> None:
    done([job for job in jobs_in(tmp_path / 'a', 1) if job.run.row == PLAIN])
    perform(request(tmp_path / 'a'))
    report = tmp_path / 'a' / 'small' / STUDY / f'{STUDY}.json'
    jobs = jobs_in(tmp_path / 'b')
    assert [(job.run.row, job.seed) for job in take_over(report, jobs)] == [(PLAIN, 4)]
    assert take_over(report, jobs) == []
    changed = json.loads(report.read_text())
    changed['runs'][0].update(run='small-vgg16-w8_b64_fashion-mnist-00000000')
    write_json(report, changed)
    assert take_over(report, jobs_in(tmp_path / 'c')) == []


def test_what_another_run_starts_from_is_trained(tmp_path: Path) -> None:
    source = Run('C', 'data', 'small/resnet18-w16_b64_fashion-scenes.py')
    after = Run('D', 'data', 'small/pspnet_r18-w16-d8_b8_fashion-scenes.py', {'load_from': '{checkpoint}'},
                before=source)
    both = jobs_of([source, after], 1, tmp_path / 'runs', {})
    told = [{'row': job.run.row, 'seed': 1, 'run': job.folder.parent.name, 'value': 1.0} for job in both]
    write_json(tmp_path / 'one.json', {'runs': told[:1]})
    write_json(tmp_path / 'two.json', {'runs': told})
    assert take_over(tmp_path / 'one.json', both) == []
    assert take_over(tmp_path / 'two.json', both) == both


@pytest.mark.parametrize('content, message', [
    ({'version': 1}, 'no report of an experiment'),
    ({'runs': [{'row': 'plain', 'seed': 4, 'value': 90.0}]}, 'does not tell the settings'),
])
def test_what_is_no_report_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    write_json(tmp_path / 'report.json', content)
    with pytest.raises(ValueError, match=message):
        take_over(tmp_path / 'report.json', jobs_in(tmp_path))
    assert not list(tmp_path.glob('small'))


def test_rows_that_are_named_are_the_ones_to_be_trained(tmp_path: Path, capsys: Any) -> None:
    perform(Request(ROOT, 'table3', work_dir=tmp_path, rows=['DyRep']))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('bash')]
    assert lines and all('/dyrep/' in line for line in lines)


def test_rows_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no row 'DyRep'; it has 'plain', 'RepVGG, static'"):
        perform(request(tmp_path, rows=['plain', 'DyRep']))
