"""What became of the branches of runs: how far they have turned, what they contribute, by their age."""
from statistics import median
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from matplotlib.figure import Figure

from mmdyrep.analysis.drawing import INK, PALETTE, new_figure

from .pictures import MARKERS, dress

NOTE = (
    'By age, in epochs since the branch was new: how far the weights of its convolutions have turned, one minus their '
    'cosine with what they were then (1 at a right angle), beside it the original convolution of the same blocks over '
    'the same epochs; and the share of the variance of the block\'s output in percent (squared gammas of the last norm '
    'of a branch, of all of the block\'s). Medians.')
Item = Mapping[str, Any]
FLOOR = 1e-9


def learning_lines(runs: Sequence[Item], groups: int = 3) -> List[str]:
    """Lines of Markdown: a row for each method and age.

    Args:
        runs (Sequence[Mapping]): Results with ``row``, ``seed`` and ``learned``, a list of
            :class:`~mmdyrep.analysis.learning.Learned` as dicts.
        groups (int): So many groups of ages of equal width. Defaults to 3.
    """
    lines = ['| | age (epochs) | branches | turned by | the original | share of the variance (%), a branch | '
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
                    row, f'{low} to {high}', str(len(added)), _turned(added), _turned(original),
                    f'{100 * median(item["share"] for item in added):.2g}', f'{100 * median(together):.2g}']) + ' |')
    return [*lines, '', NOTE]


def _ages(oldest: int, groups: int) -> List[Tuple[int, int]]:
    edges = [round((oldest + 1) * place / groups) for place in range(groups + 1)]
    return [(low, high - 1) for low, high in zip(edges, edges[1:]) if high > low]


def _of_age(run: Item, low: int, high: int) -> List[Item]:
    return [item for item in run['learned'] if low <= item['age'] <= high]


def _turned(items: Sequence[Item]) -> str:
    values = [turned(item) for item in items if item['cosine'] is not None]
    return f'{median(values):.1e}' if values else '-'


def turned(item: Item) -> float:
    """One minus the cosine, no less than what its rounding leaves of it."""
    return max(1 - float(item['cosine']), FLOOR)


def draw_learning(title: str, runs: Sequence[Item]) -> Figure:
    """A mark for each added branch: how far it has turned, and its share of the variance, over its age.

    Args:
        title (str): Above it.
        runs (Sequence[Mapping]): As for :func:`learning_lines`.
    """
    figure = new_figure(7.5, 3.7)
    rows = list(dict.fromkeys(run['row'] for run in runs))
    values: Dict[str, Callable[[Item], float]] = {
        'turned by (1 - cosine with the start)': turned,
        'share of the variance of the output (%)': lambda item: max(100 * float(item['share']), 1e-4)}
    for place, (name, value) in enumerate(values.items()):
        axes = figure.add_axes((0.09 + 0.36 * place, 0.13, 0.26, 0.75))
        for number, row in enumerate(rows):
            # ages are whole: methods stand beside one another
            marks = [(item['age'] + 0.25 * (number - (len(rows) - 1) / 2), value(item))
                     for run in runs if run['row'] == row for item in run['learned']
                     if item['branch'] != 'kxk' and item['cosine'] is not None]
            axes.plot([x for x, _ in marks], [y for _, y in marks], MARKERS[number % len(MARKERS)], markersize=3.5,
                      alpha=0.6, color=PALETTE[number % len(PALETTE)], label=row)
        axes.set_yscale('log')
        dress(axes, 'age of the branch (epochs)', name)
    axes.legend(fontsize=7, frameon=False, loc='upper left', bbox_to_anchor=(1.01, 1), labelcolor=INK,
                title='added branches', title_fontsize=7)
    figure.text(0.02, 0.975, title, fontsize=9, color=INK, va='top')
    return figure
