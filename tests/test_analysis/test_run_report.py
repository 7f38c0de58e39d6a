"""The report says what the files of a run say."""
import json

import pytest
import torch

from mmdyrep.analysis.run_report import report
from mmdyrep.fileio import write_json


@pytest.fixture
def run(tmp_path):
    def cost(number):
        return {'macs': {'backbone': number, 'model': number + 1},
                'parameters': {'backbone': number, 'model': number + 2}}

    update = {'epoch': 1, 'iter': 10, 'grown': [{'op': 'a', 'branches': ['1x1']}], 'cut': []}
    write_json(tmp_path / 'dyrep' / 'history.json', {
        'version': 1, 'start': {'iter': 0, **cost(1000)}, 'iterations': 40,
        'updates': [{**update, **cost(3000)}, {**update, 'iter': 20, 'cut': [{'op': 'a', 'branches': ['1x1', 'kx1']}],
                                               **cost(2000)}]})
    for folder, top1 in (('augmented', 88.125), ('plain', 88.5)):
        for stamp, value in (('20250101_000000', 1.0), ('20250102_000000', top1)):
            (tmp_path / folder / stamp).mkdir(parents=True)
            (tmp_path / folder / stamp / f'{stamp}.json').write_text(json.dumps({'accuracy/top1': value, 'time': 0.1}))
    torch.save({'state_dict': {'w': torch.ones(1)}, 'meta': {'mmdyrep': {
        'compared': 'logits on 9 images', 'difference': 2e-6, 'relative': 1e-7,
        'structure': {'ops': {'a': ['kxk', '1x1'], 'a.branches.kxk.conv': ['kxk', '1xk', 'kx1']}}}}},
               tmp_path / 'f.pth')
    return tmp_path


def test_newest_tests_growth_and_costs_are_reported(run):
    lines = dict(report(run, run / 'augmented', run / 'plain', run / 'f.pth'))
    assert lines['accuracy/top1'] == '88.12 augmented, 88.50 fused to the plain network'
    assert '2.0e-06' in lines['logits on 9 images']
    assert lines['growth'] == '2 updates: 2 ops expanded, 2 branches removed from 1 block'
    # (10 * 1001 + 10 * 3001 + 20 * 2001) / 40
    assert lines['MACs'].startswith(
        '1.001 k plain, 2.001 k on average in training, 3.001 k at most, 2.001 k at the end')
    assert lines['structure at the end'] == ('1 op of the plain network expanded, 1 nested in them, '
                                             '3 branches beside the originals')


def test_missing_test_is_an_error_that_says_what_to_run(run):
    with pytest.raises(ValueError, match='run tools/test.py with --work-dir'):
        report(run, run / 'nothing', run / 'plain', run / 'f.pth')
