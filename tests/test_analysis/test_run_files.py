"""Work dirs are read as the runs that happened in them."""
import json

import pytest
from mmengine.config import Config

from mmdyrep.analysis.run_files import Span, all_costs, pick_metric, read_run, read_runs, spans
from mmdyrep.fileio import write_json

from .runs import history, scalars
from .test_complexity import small


def test_curves_of_an_epoch_loop(tmp_path):
    scalars(tmp_path, '20250101_000000', range(1, 4), lambda epoch: 70.0 + epoch)
    run = read_run(tmp_path)
    assert run.by_epoch and run.history is None and run.end == 3
    assert run.metrics['accuracy/top1'] == [(1, 71), (2, 72), (3, 73)]
    # mean of iterations 5 and 10
    assert dict(run.loss) == pytest.approx({1: 3.075, 2: 1.575, 3: 1.075})
    assert set(run.metrics) == {'accuracy/top1', 'accuracy/top5'}


def test_parts_of_a_resumed_run_are_joined_and_the_later_one_counts(tmp_path):
    scalars(tmp_path, '20250101_000000', range(1, 6), lambda epoch: epoch)
    scalars(tmp_path, '20250102_000000', range(3, 5), lambda epoch: 10.0 * epoch)
    # a test run leaves an empty file
    empty = tmp_path / '20250103_000000' / 'vis_data' / 'scalars.json'
    empty.parent.mkdir(parents=True)
    empty.touch()
    run = read_run(tmp_path)
    assert run.metrics['accuracy/top1'] == [(1, 1), (2, 2), (3, 30), (4, 40)], 'epoch 5 was undone by the resume'
    assert [epoch for epoch, _ in run.loss] == [1, 2, 3, 4]


def test_a_killed_run_may_end_in_half_a_line_but_no_other_line_may_be_broken(tmp_path):
    scalars(tmp_path, '20250101_000000', range(1, 3), float)
    path = tmp_path / '20250101_000000' / 'vis_data' / 'scalars.json'
    text = path.read_text()
    path.write_text(text + '{"accuracy/top1": 7')
    assert read_run(tmp_path).metrics['accuracy/top1'] == [(1, 1), (2, 2)]
    path.write_text(text[:9] + '\n' + text)
    with pytest.raises(ValueError, match='line 1'):
        read_run(tmp_path)


def test_an_iteration_loop_counts_iterations(tmp_path):
    folder = tmp_path / '20250101_000000' / 'vis_data'
    folder.mkdir(parents=True)
    rows = [{'loss': 2.0, 'iter': 50, 'step': 50}, {'loss': 1.0, 'iter': 100, 'step': 100}, {'mIoU': 40.0, 'step': 100}]
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    run = read_run(tmp_path)
    assert not run.by_epoch and run.unit == 'iter'
    assert run.loss == [(50, 2.0), (100, 1.0)] and run.metrics == {'mIoU': [(100, 40.0)]}
    scalars(tmp_path / 'other', '20250101_000000', [1], float)
    with pytest.raises(ValueError, match='some iterations'):
        read_runs([tmp_path, tmp_path / 'other'])


def test_spans_follow_growth_cuts_and_what_went_with_them(tmp_path):
    scalars(tmp_path, '20250101_000000', range(1, 6), float)
    nested = 'a.branches.1x1_kxk.conv'
    history(tmp_path, [(1, {'a': ['1x1', '1x1_kxk', 'kx1']}, {}), (2, {nested: ['1x1']}, {}),
                       (3, {'b': ['1x1']}, {'a': ['1x1_kxk']}), (4, {}, {'old': ['1x1'], 'older': ['1x1']})])
    # `still` and `old` are from a structure that the run started with; `older` had a branch beside the one cut
    write_json(tmp_path / 'dyrep' / 'structure_3.json', {'version': 1, 'ops': {'wrong': ['kxk', '1x1']}})
    write_json(tmp_path / 'dyrep' / 'structure_10.json', {'version': 1, 'ops': {
        'a': ['kxk', '1x1', 'kx1'], 'b': ['kxk', '1x1'], 'still': ['kxk', '1x1'], 'old': ['kxk', 'kx1']}})
    assert sorted(spans(read_run(tmp_path)), key=lambda span: (span.op, span.begin)) == [
        Span('a', 1, 3, 4, False), Span('a', 3, 5, 3, True), Span(nested, 2, 3, 2, False), Span('b', 3, 5, 2, False),
        Span('old', 0, 4, 3, False), Span('old', 4, 5, 2, True), Span('older', 0, 4, 3, False),
        Span('older', 4, 5, 2, True), Span('still', 0, 5, 2, False)]


def test_labels_tell_runs_apart(tmp_path):
    for name in ('x/a', 'y/a', 'y/b'):
        scalars(tmp_path / name, '20250101_000000', [1], float)
    runs = read_runs([tmp_path / 'x' / 'a', f'{tmp_path}/y/a/', tmp_path / 'y' / 'b'])
    assert [run.label for run in runs] == ['x/a', 'y/a', 'b']


def test_the_usual_metric_is_picked(tmp_path):
    scalars(tmp_path, '20250101_000000', [1], float)
    runs = read_runs([tmp_path])
    assert pick_metric(runs) == 'accuracy/top1' and pick_metric(runs, 'accuracy/top5') == 'accuracy/top5'
    with pytest.raises(ValueError, match="'mIoU'.*accuracy/top1"):
        pick_metric(runs, 'mIoU')


def test_costs_come_from_the_history_else_from_the_config(tmp_path):
    for name in ('dyrep', 'plain', 'static', 'broken', 'none'):
        scalars(tmp_path / name, '20250101_000000', [1], float)
    history(tmp_path / 'dyrep', [])
    small().dump(tmp_path / 'plain' / 'config.py')
    small(static=True).dump(tmp_path / 'static' / 'config.py')
    Config(dict(model=dict(type='NoSuchModel'))).dump(tmp_path / 'broken' / 'broken.py')
    runs = read_runs([tmp_path / name for name in ('dyrep', 'plain', 'static', 'broken', 'none')])
    costs, unknown = all_costs(runs)
    assert costs['dyrep'] == {'backbone': 149e6, 'model': 150e6}
    # at the 28x28 of the history, where the configs alone would say 224x224
    assert 1.7e6 < costs['plain']['model'] < 1.9e6 and costs['static']['model'] > 2.5 * costs['plain']['model']
    assert 'broken.py' in unknown['broken'] and 'neither' in unknown['none'] and len(costs) == 3


def test_what_is_no_run_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        read_run(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='work dir'):
        read_run(tmp_path)
    scalars(tmp_path, '20250101_000000', [1], float)
    for value, message in (([], 'is no history'), ({'version': 9, 'updates': []}, 'version 9')):
        write_json(tmp_path / 'dyrep' / 'history.json', value)
        with pytest.raises(ValueError, match=message):
            read_run(tmp_path)
