"""What became of the branches of runs: how far they have turned, what they contribute, by their age."""
from statistics import median
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from matplotlib.figure import Figure

from mmdyrep.analysis.drawing import FAINT, INK, PALETTE, new_figure

from .pictures import MARKERS, dress

NOTE = (
    'By age, in epochs since the branch was new: cosine between the weights of its convolutions then and at the end, '
    'and its share of the variance of the block\'s output (squared gammas of its last norm, of all of the block\'s); '
    'medians. Beside the cosine that of the original convolution of the same blocks, over the same epochs.')
Item = Mapping[str, Any]


def learning_lines(runs: Sequence[Item], groups: int = 3) -> List[str]:
    """Lines of Markdown: a row for each method and age.

    Args:
        runs (Sequence[Mapping]): Results with ``row``, ``seed`` and ``learned``, a list of
            :class:`~mmdyrep.analysis.learning.Learned` as dicts.
        groups (int): So many groups of ages of equal width. Defaults to 3.
    """
    lines = ['| | age (epochs) | branches | cosine to the start | of the original | share of the variance, a branch | '
             'all added ones of a block |', '|---|---|---|---|---|---|---|']
    oldest = max(item['age'] for run in runs for item in run['learned'])
    for row in dict.fromkeys(run['row'] for run in runs):
        for low, high in _ages(oldest, groups):
            there = [_of_age(run, low, high) for run in runs if run['row'] == row]
            added = [item for items in there for item in items if item['branch'] != 'kxk']
            if added:
                original = [item for items in there for item in items if item['branch'] == 'kxk']
                together = [sum(item['share'] for item in items if item['op'] == op and item['branch'] != 'kxk')
                            for items in there for op in dict.fromkeys(item['op'] for item in items)]
                lines.append('| ' + ' | '.join([
                    row, f'{low} to {high}', str(len(added)), _median(added, 'cosine'), _median(original, 'cosine'),
                    _median(added, 'share'), f'{median(together):.3f}']) + ' |')
    return [*lines, '', NOTE]


def _ages(oldest: int, groups: int) -> List[Tuple[int, int]]:
    edges = [round((oldest + 1) * place / groups) for place in range(groups + 1)]
    return [(low, high - 1) for low, high in zip(edges, edges[1:]) if high > low]


def _of_age(run: Item, low: int, high: int) -> List[Item]:
    return [item for item in run['learned'] if low <= item['age'] <= high]


def _median(items: Sequence[Item], key: str) -> str:
    values = [item[key] for item in items if item[key] is not None]
    return f'{median(values):.3f}' if values else '-'


def draw_learning(title: str, runs: Sequence[Item]) -> Figure:
    """A mark for each added branch: cosine to its start, and share of the variance, over its age.

    Args:
        title (str): Above it.
        runs (Sequence[Mapping]): As for :func:`learning_lines`.
    """
    figure = new_figure(7.5, 3.7)
    rows = list(dict.fromkeys(run['row'] for run in runs))
    names = {'cosine': 'cosine of the weights to their start', 'share': 'share of the variance of the output'}
    for place, (key, name) in enumerate(names.items()):
        axes = figure.add_axes((0.08 + 0.35 * place, 0.13, 0.27, 0.75))
        for number, row in enumerate(rows):
            marks: Dict[str, List[float]] = {'x': [], 'y': []}
            for item in (item for run in runs if run['row'] == row for item in run['learned']):
                if item['branch'] != 'kxk' and item[key] is not None:
                    # ages are whole: methods stand beside one another
                    marks['x'].append(item['age'] + 0.25 * (number - (len(rows) - 1) / 2))
                    marks['y'].append(item[key])
            axes.plot(marks['x'], marks['y'], MARKERS[number % len(MARKERS)], markersize=3.5, alpha=0.6,
                      color=PALETTE[number % len(PALETTE)], label=row)
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02 if key == 'cosine' else None)
        dress(axes, 'age of the branch (epochs)', name)
    axes.legend(fontsize=7, frameon=False, loc='upper left', bbox_to_anchor=(1.01, 1), labelcolor=INK,
                title='added branches', title_fontsize=7)
    figure.text(0.02, 0.975, title, fontsize=9, color=INK, va='top')
    figure.axes[0].axhline(0, color=FAINT, linewidth=0.8)
    return figure
