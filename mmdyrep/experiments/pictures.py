"""The picture of an experiment."""
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmdyrep.analysis.drawing import FAINT, GRID, INK, PALETTE, new_figure

from .experiment import NAMES, Experiment

Table = Sequence[Mapping[str, Any]]
MARKERS = 'osD^vPX'


def draw(experiment: Experiment, table: Table, results: Sequence[Mapping[str, Any]]) -> Figure:
    """Picture of the kind that the experiment asks for; 'stem' has its own, of a checkpoint."""
    kinds: Dict[str, Callable[[Experiment, Table, Sequence[Mapping[str, Any]]], Figure]] = {
        'curves': _curves, 'costs': _costs}
    return kinds.get(experiment.picture, _dots)(experiment, table, results)


def _dots(experiment: Experiment, table: Table, results: Sequence[Mapping[str, Any]]) -> Figure:
    """Each seed a dot, the mean and its 95 % interval; a panel for each metric, a row for each method."""
    metrics = list(dict.fromkeys(entry['metric'] for entry in table))
    panels = [[entry for entry in table if entry['metric'] == metric] for metric in metrics]
    heights = [0.32 * len(panel) + 0.75 for panel in panels]
    figure = new_figure(6.5, sum(heights) + 0.2)
    height, top = figure.get_figheight(), 0.3
    figure.text(0.02, 1 - 0.1 / height, experiment.title, fontsize=9, color=INK, va='top')
    columns = list(dict.fromkeys(entry['column'] for entry in table))
    for metric, panel, tall in zip(metrics, panels, heights):
        axes = figure.add_axes((0.3, 1 - (top + tall - 0.7) / height, 0.66, (tall - 0.7) / height))
        top += tall
        for place, entry in enumerate(panel):
            colour = PALETTE[columns.index(entry['column']) % len(PALETTE)]
            value = entry['value']
            axes.plot(value['values'], [place] * value['number'], 'o', markersize=3.5, color=colour, alpha=0.5)
            axes.errorbar(value['mean'], place, xerr=value.get('interval'), fmt='|', markersize=9, color=colour,
                          capsize=3, linewidth=1)
        several = len({entry['column'] for entry in panel}) > 1
        labels = [f'{entry["row"]}, {entry["column"]}' if several else entry['row'] for entry in panel]
        axes.set_yticks(range(len(panel)), labels, fontsize=8, color=INK)
        axes.set_ylim(len(panel) - 0.5, -0.5)
        axes.set_xlim(_wide(*axes.get_xlim()))
        dress(axes, f'{NAMES[metric]} (%){_of_seeds(panel)}', '')
        axes.spines['left'].set_visible(False)
    return figure


def _wide(low: float, high: float) -> Tuple[float, float]:
    """No less than a point: smaller differences shall look small."""
    more = max(1 - (high - low), 0) / 2
    return low - more, high + more


def _of_seeds(table: Table) -> str:
    several = any(entry['value']['number'] > 1 for entry in table)
    return ': each seed, mean and 95 % interval' if several else ', one seed'


def _curves(experiment: Experiment, table: Table, results: Sequence[Mapping[str, Any]]) -> Figure:
    """The metric by epoch, one line a method, mean over its seeds; the last values beside."""
    figure = new_figure(6.5, 3.4)
    axes = figure.add_axes((0.1, 0.15, 0.64, 0.75))
    for number, entry in enumerate(table):
        curves = [result['curve'] for result in results
                  if (result['row'], result['column']) == (entry['row'], entry['column'])]
        steps = [step for step, _ in curves[0] if all(step in dict(curve) for curve in curves)]
        means = [sum(dict(curve)[step] for curve in curves) / len(curves) for step in steps]
        axes.plot(steps, means, marker=MARKERS[number % len(MARKERS)] if len(steps) < 31 else '', markersize=4,
                  linewidth=1.4, color=PALETTE[number % len(PALETTE)],
                  label=f'{entry["row"]}: {entry["value"]["mean"]:.2f}')
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    number = max(entry['value']['number'] for entry in table)
    dress(axes, 'epoch', f'{NAMES[table[0]["metric"]]} (%)')
    axes.legend(fontsize=8, frameon=False, loc='upper left', bbox_to_anchor=(1.01, 1),
                title='last value (%)' + (f', mean of {number}' if number > 1 else ''), title_fontsize=8)
    axes.set_title(experiment.title, fontsize=9, color=INK, loc='left')
    return figure


def _costs(experiment: Experiment, table: Table, results: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against average MACs: a colour for each network, a marker for each method."""
    figure = new_figure(6.5, 3.4)
    axes = figure.add_axes((0.1, 0.15, 0.64, 0.75))
    networks = list(dict.fromkeys(entry['column'] for entry in table))
    rows = list(dict.fromkeys(entry['row'] for entry in table))
    largest = max(entry['macs']['mean'] for entry in table)
    unit, size = ('G', 1e9) if largest >= 1e9 else ('M', 1e6)
    for number, network in enumerate(networks):
        colour = PALETTE[number % len(PALETTE)]
        points = sorted(((entry['macs']['mean'] / size, entry['value']['mean'], entry['row']) for entry in table
                         if entry['column'] == network))
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], '-', color=colour, linewidth=1, alpha=0.6)
        for x, y, row in points:
            axes.plot(x, y, MARKERS[rows.index(row) % len(MARKERS)], color=colour, markersize=7)
        axes.plot([], [], '-', color=colour, label=network)
    for place, row in enumerate(rows):
        axes.plot([], [], MARKERS[place % len(MARKERS)], color=FAINT, label=row)
    dress(axes, f'MACs of the model, average over the training ({unit})', f'{NAMES[table[0]["metric"]]} (%)')
    axes.legend(fontsize=8, frameon=False, loc='upper left', bbox_to_anchor=(1.01, 1))
    axes.margins(0.08, 0.15)
    axes.set_ylim(_wide(*axes.get_ylim()))
    axes.set_title(experiment.title, fontsize=9, color=INK, loc='left')
    return figure


def draw_counts(experiment: Experiment, counts: Table) -> Figure:
    """MACs and parameters in units of the plain network's, a bar each."""
    figure = new_figure(6.5, 0.8 + 0.24 * len(counts))
    height = figure.get_figheight()
    labels = _labels(counts)
    for place, (key, name) in enumerate((('macs_ratio', 'MACs'), ('parameters_ratio', 'parameters'))):
        axes = figure.add_axes((0.3 + 0.36 * place, 0.45 / height, 0.3, 1 - 0.75 / height))
        values: List[float] = [entry[key] for entry in counts]
        axes.barh(range(len(values)), values, height=0.65, color=PALETTE[place])
        for at, value in enumerate(values):
            axes.text(value, at, f' {value:.2f}', va='center', fontsize=7, color=INK)
        axes.set_yticks(range(len(values)), labels if not place else [''] * len(values), fontsize=8, color=INK)
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlim(0, 1.2 * max(values))
        dress(axes, f'{name}, times the plain network\'s', '')
        axes.spines['left'].set_visible(False)
    figure.text(0.02, 1 - 0.08 / height, experiment.title, fontsize=9, color=INK, va='top')
    return figure


def _labels(table: Table) -> List[str]:
    several = len({entry['column'] for entry in table}) > 1
    return [f'{entry["row"]}, {entry["column"]}' if several else entry['row'] for entry in table]


def dress(axes: Axes, x: str, y: str) -> None:
    """Labels, a grid, no frame."""
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    axes.grid(axis='both' if y else 'x', color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
