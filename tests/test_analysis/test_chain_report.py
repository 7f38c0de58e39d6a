"""The table of the small chain, from files of the form that its tools write."""
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from mmdyrep.analysis.chain_report import (
    DETECTOR,
    PRETRAINED,
    ROWS,
    SEGMENTOR,
    check_fusing,
    markdown,
    plot_chain,
    read_chain,
    worst_fusing,
)

ROOT = Path(__file__).parents[2]


def put_test(folder: Path, metrics: dict) -> None:
    path = folder / '20260101_000000' / '20260101_000000.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**metrics, 'data_time': 0.5, 'time': 1.5}))


def put_history(run: Path) -> None:
    (run / 'dyrep').mkdir()
    updates = [dict(epoch=1, iter=10, grown=[dict(op='conv1', branches=['1x1', '1xk'])], cut=[]),
               dict(epoch=2, iter=20, grown=[dict(op='layer1.0.conv1', branches=['1x1'])],
                    cut=[dict(op='conv1', branches=['1x1', '1xk'])])]
    (run / 'dyrep' / 'history.json').write_text(json.dumps(dict(
        version=1, updates=updates, start=dict(iter=0, macs=dict(backbone=10_000_000)),
        average=dict(macs=dict(backbone=12_500_000.0)))))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Values that tell where they came from: 70, 71 top-1; 0.30 to 0.33 mAP; 40 to 43 mIoU, by the row."""
    for number, name in enumerate(PRETRAINED):
        put_test(tmp_path / name / 'test', {'accuracy/top1': 70.0 + number})
    for number, (*_, part) in enumerate(ROWS):
        put_test(tmp_path / DETECTOR.format(part) / 'test', {'coco/bbox_mAP': 0.3 + number / 100,
                                                             'coco/bbox_mAP_50': 0.9})
        put_test(tmp_path / SEGMENTOR.format(part) / 'test', {'mIoU': 40.0 + number, 'aAcc': 80.0, 'mAcc': 60.0})
    for name, metrics in ((PRETRAINED[1], {'accuracy/top1': 71.05}),
                          (DETECTOR.format('-dyrep-d'), {'coco/bbox_mAP': 0.32}),
                          (SEGMENTOR.format('-dyrep-cd'), {'mIoU': 43.0})):
        put_history(tmp_path / name)
        put_test(tmp_path / name / 'test_fused', metrics)
        (tmp_path / name / 'train.done').write_text('123\n')
    return tmp_path


def test_rows_take_their_metrics_from_the_runs_of_their_stage(chain):
    table = markdown(read_chain(chain)).splitlines()
    assert table[:6] == ['| Rep method | Rep stage | top-1 | mAP | mIoU |', '|---|---|---|---|---|',
                         '| - | - | 70.00 | 30.0 | 40.00 |', '| DyRep | C | 71.00 | 31.0 | 41.00 |',
                         '| DyRep | D | 70.00 | 32.0 | 42.00 |', '| DyRep | C+D | 71.00 | 33.0 | 43.00 |']


def test_single_runs_tell_growth_cost_and_time(chain):
    content = read_chain(chain)
    assert len(content['runs']) == 10
    line = next(line for line in markdown(content).splitlines() if line.startswith('| pspnet_r18-w16-d8-dyrep-cd_b8'))
    assert line == ('| pspnet_r18-w16-d8-dyrep-cd_b8 | mIoU | 43.00 | 43.00 | 2 | 2 | 12.5 M (plain 10 M) | 123 |')
    plain = next(line for line in markdown(content).splitlines() if line.startswith('| pspnet_r18-w16-d8_b8'))
    assert plain.split('|')[4].strip() == ''


def test_a_fused_network_that_does_otherwise_is_refused(chain):
    content = read_chain(chain)
    check_fusing(content)
    assert worst_fusing(content) == pytest.approx(0.05)
    put_test(chain / DETECTOR.format('-dyrep-d') / 'test_fused', {'coco/bbox_mAP': 0.318})
    with pytest.raises(ValueError, match=r'faster-rcnn_r18-w16-dyrep-d.*32\.0 before.*31\.8 after'):
        check_fusing(read_chain(chain))


def test_missing_tests_are_named(chain):
    next((chain / DETECTOR.format('') / 'test').rglob('*.json')).unlink()
    with pytest.raises(ValueError, match='faster-rcnn_r18-w16_fpn_b8/test holds no test'):
        read_chain(chain)
    put_test(chain / DETECTOR.format('') / 'test', {'mIoU': 1.0})
    with pytest.raises(ValueError, match="no coco/bbox_mAP, it has .'mIoU'"):
        read_chain(chain)


def test_the_picture_has_a_point_for_each_figure(chain):
    figure = plot_chain(read_chain(chain))
    assert [axes.get_title(loc='left') for axes in figure.axes] == ['top-1 (%)', 'mAP (%)', 'mIoU (%)']
    points = [[line.get_xdata()[0] for line in axes.lines if line.get_marker() == 'o'] for axes in figure.axes]
    assert points == [[70, 71, 70, 71], [30, 31, 32, 33], [40, 41, 42, 43]]


def test_the_tool_prints_and_writes_or_writes_nothing(chain):
    def call():
        return subprocess.run([sys.executable, str(ROOT / 'tools/analysis_tools/report_chain.py'), str(chain)],
                              capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})

    done = call()
    assert done.returncode == 0 and markdown(read_chain(chain)) in done.stdout, done.stderr
    assert (chain / 'table.md').read_text() == markdown(read_chain(chain))
    assert json.loads((chain / 'table.json').read_text()) == read_chain(chain)
    assert cv2.imread(str(chain / 'table.png')).shape[1] > 1000
    for kind in ('md', 'json', 'png'):
        (chain / f'table.{kind}').unlink()
    put_test(chain / DETECTOR.format('-dyrep-d') / 'test_fused', {'coco/bbox_mAP': 0.1})
    done = call()
    assert done.returncode == 1 and 'dyrep-d' in done.stderr and not list(chain.glob('table.*'))
