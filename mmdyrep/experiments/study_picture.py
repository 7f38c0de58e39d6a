"""The picture of a study: what a method gains over the plain network, against what its training costs."""
from typing import Any, Mapping, Sequence, TypedDict

from matplotlib.figure import Figure

from mmdyrep.analysis.drawing import FAINT, GRID, INK, PALETTE, new_figure, text_width

from .experiment import Study
from .pairs import FEWEST
from .pictures import MARKERS, dress

Table = Sequence[Mapping[str, Any]]
# methods of one cost stand beside one another, by so much of the width
ASIDE = 0.02


def draw_study(study: Study, table: Table) -> Figure:
    """A panel for executed MACs and one for CPU time, a marker with its 95 % interval for each method.

    Differences to the plain network are what is drawn: the interval of a mean accuracy would hold the luck of the
    seeds, which twins have in common.

    Args:
        study (Study): Its first reference is the plain network.
        table (Sequence[Mapping]): With pairs.
    """
    plain = study.references[0]
    rows = list(dict.fromkeys(entry['row'] for entry in table))
    legend = 0.5 + max(text_width(row, 7) for row in rows)
    figure = new_figure(5.75 + legend, 3.9)
    width = figure.get_figwidth()
    bases = {entry['column']: entry for entry in table if entry['row'] == plain}
    names = {'executed': 'executed MACs', 'cpu_seconds': 'CPU time'}
    panels = [figure.add_axes(((0.8 + 2.55 * place) / width, 0.13, 2.1 / width, 0.77)) for place in (0, 1)]
    for axes, (key, name) in zip(panels, names.items()):
        axes.axhline(0, color=FAINT, linewidth=1)
        costs = [(entry, entry[key]['mean'] / bases[entry['column']][key]['mean']) for entry in table
                 if key in entry and key in bases.get(entry['column'], {})]
        span = max((cost for _, cost in costs), default=0.0) - min((cost for _, cost in costs), default=0.0) or 1.0
        for entry, cost in costs:
            pair = {'mean': 0.0} if entry['row'] == plain else entry['pairs'].get(plain, {})
            if 'mean' in pair:
                ends = [[pair['mean'] - pair['low']], [pair['high'] - pair['mean']]] if 'low' in pair else None
                place = rows.index(entry['row'])
                aside = (place - (len(rows) - 1) / 2) * ASIDE * span
                axes.errorbar(cost + aside, pair['mean'], yerr=ends, capsize=2, linewidth=1, markersize=5,
                              **_style(place))
        dress(axes, f'{name}, times the plain network\'s', f'top-1, points above {plain}' if key == 'executed' else '')
        axes.grid(axis='y', color=GRID, linewidth=0.6)
        axes.margins(0.08, 0.12)
    low, high = panels[0].get_ylim()
    # no less than half a point: smaller differences shall look small
    more = max(0.5 - (high - low), 0) / 2
    for axes in panels:
        axes.set_ylim(low - more, high + more)
    for place, row in enumerate(rows):
        panels[1].errorbar([], [], label=row, **_style(place))
    panels[1].legend(fontsize=7, frameon=False, loc='upper left', bbox_to_anchor=(1.01, 1))
    several = any('low' in pair for entry in table for pair in entry['pairs'].values())
    kind = 'mean of the pairs' + (f', 95 % interval of {FEWEST} or more' if several else '')
    figure.text(0.02, 0.975, f'{study.title}: {kind}', fontsize=9, color=INK, va='top')
    return figure


class Style(TypedDict):
    """What tells a row from the others."""

    fmt: str
    color: str


def _style(place: int) -> Style:
    # markers are as many as colours: the second time round they meet others
    return Style(fmt=MARKERS[(place + place // len(PALETTE)) % len(MARKERS)], color=PALETTE[place % len(PALETTE)])
