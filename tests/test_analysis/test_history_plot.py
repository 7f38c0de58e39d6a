"""The picture of runs shows each of them in each panel, and no words lie over others."""
import pytest

from mmdyrep.analysis.history_plot import plot_history
from mmdyrep.analysis.run_files import read_runs

from .runs import history, scalars
from .test_structure_plots import apart, words

COSTS = {'dyrep': {'backbone': 149e6, 'model': 150e6}, 'plain': {'backbone': 89e6, 'model': 90e6}}


@pytest.fixture
def runs(tmp_path):
    for number, name in enumerate(('dyrep', 'plain', 'unknown')):
        scalars(tmp_path / name, '20250101_000000', range(1, 9), lambda epoch, number=number: 70.0 + epoch + number)
    history(tmp_path / 'dyrep', [(2, {'layer1.0.conv1': ['1x1', 'kx1', '1xk']}, {}),
                                 (4, {'layer1.0.conv1.branches.kxk.conv': ['1x1']}, {}),
                                 (6, {'layer1.1.conv1': ['1x1']}, {'layer1.0.conv1': ['kx1', '1xk']})])
    return read_runs([tmp_path / name for name in ('dyrep', 'plain', 'unknown')])


def test_curves_of_every_run_and_points_of_those_of_known_cost(runs):
    figure = plot_history(runs, 'accuracy/top1', COSTS)
    accuracy, loss, cost, _ = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['dyrep', 'plain', 'unknown']
    assert [list(line.get_ydata()) for line in accuracy.lines] == [
        [70 + epoch + number for epoch in range(1, 9)] for number in range(3)]
    assert len(loss.lines) == 3 and list(loss.lines[0].get_xdata()) == list(range(1, 9))
    points = {line.get_color(): (float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in cost.lines}
    colours = [line.get_color() for line in accuracy.lines]
    assert points == {colours[0]: (150.0, 78.0), colours[1]: (90.0, 79.0)} and len(set(colours)) == 3
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ('epoch', 'accuracy/top1 (%)')
    assert cost.get_xlabel() == 'MACs of the model, average over training (M)'
    assert apart(figure, words(figure))


def test_the_structure_of_the_run_with_dyrep_over_its_epochs(runs):
    axes = plot_history(runs, 'accuracy/top1', COSTS).axes[3]
    assert axes.get_title(loc='left') == 'Structure over time: dyrep'
    assert [tick.get_text().strip() for tick in axes.get_yticklabels()] == [
        'layer1.0.conv1', 'in its kxk', 'layer1.1.conv1']
    bars = sorted((round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width()) for bar in axes.patches)
    assert bars == [(0, 2, 4), (0, 6, 2), (1, 4, 4), (2, 6, 2)]
    assert [text.get_text() for text in axes.texts] == ['4', '2', '2', '2']
    crosses = [tuple(float(value[0]) for value in line.get_data()) for line in axes.lines if line.get_marker() == 'X']
    assert crosses == [(6.0, 0.0)], 'cut after epoch 6'
    assert len(axes.get_legend().get_texts()) == 3


def test_backbones_are_compared_where_a_model_is_not_counted(runs):
    costs = {'dyrep': COSTS['dyrep'], 'plain': {'backbone': 4e9}}
    cost = plot_history(runs, 'accuracy/top1', costs).axes[2]
    assert cost.get_xlabel() == 'MACs of the backbone, average over training (G)'
    assert [float(line.get_xdata()[0]) for line in cost.lines] == [0.149, 4.0]


def test_runs_without_metric_cost_or_growth_are_said_to_be_so(tmp_path):
    scalars(tmp_path, '20250101_000000', [1], float)
    history(tmp_path, [])
    runs = read_runs([tmp_path])
    runs[0].metrics.clear()
    axes = plot_history(runs, None, {}).axes
    assert ['nothing' in axes[0].texts[0].get_text(), 'no run' in axes[2].texts[0].get_text(),
            axes[3].texts[0].get_text()] == [True, True, 'no op was expanded']


def test_many_ops_and_long_names_stay_apart(tmp_path):
    names = [f'a_training_run_with_a_rather_long_name_{number}' for number in range(9)]
    for name in names:
        scalars(tmp_path / name, '20250101_000000', range(1, 41), lambda epoch: 70.0)
    history(tmp_path / names[0], [(epoch, {f'stage{epoch}.branches.0.{epoch}.conv1': ['1x1', '1x1_kxk']},
                                   {f'stage{epoch - 3}.branches.0.{epoch - 3}.conv1': ['1x1']} if epoch > 3 else {})
                                  for epoch in range(1, 31)])
    figure = plot_history(read_runs([tmp_path / name for name in names]), 'accuracy/top1', {})
    assert len(figure.axes[3].get_yticklabels()) == 30
    assert apart(figure, words(figure))
    legend = figure.legends[0].get_window_extent(figure.canvas.get_renderer())
    assert not any(legend.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 9, 'nine runs look different'
