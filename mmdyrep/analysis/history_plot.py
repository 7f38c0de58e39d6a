"""Runs side by side: convergence, accuracy against cost, structure over time (Figures 1 and 5)."""
from typing import Callable, List, Literal, Mapping, Optional, Sequence, Tuple, TypedDict

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmdyrep.reparam.structure import root_of

from . import drawing
from .drawing import FAINT, GRID, INK
from .run_files import Points, Run, Span, spans
from .structure_file import indented

MARKERS = 'osD^vPX'
LineStyle = Literal['-', '--', ':', '-.']
LINES: Tuple[LineStyle, ...] = ('-', '--', ':', '-.')
# inches
WIDTH, MARGIN, PLOT, ROW = 12.5, 0.3, 3.0, 0.24


def plot_history(runs: Sequence[Run], metric: Optional[str], costs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the runs.

    Args:
        runs (Sequence[Run]): Read from their work dirs.
        metric (str, optional): Validation metric; None if there is none.
        costs (Mapping): MACs of backbone and model averaged over training, by label; runs may be missing.

    Returns:
        Figure: Curves of the metric and the loss, the metric against average MACs, and for each run with DyRep
        its structure over time.
    """
    charts = [(run, spans(run)) for run in runs if run.history is not None]
    keys = _run_keys(runs)
    columns = max(1, int((WIDTH - 2 * MARGIN) / (max(drawing.text_width(run.label, 9) for run in runs) + 0.65)))
    head = 0.5 + 0.24 * -(-len(runs) // columns)
    heights = [_height(found) for _, found in charts]
    height = head + 0.4 + PLOT + (0.65 if charts else 0.6) + sum(heights)
    figure = drawing.new_figure(WIDTH, height)

    def place(left: float, top: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height))

    figure.text(MARGIN / WIDTH, 1 - 0.14 / height, 'Training runs', fontsize=13, weight='bold', va='top', color=INK)
    figure.legend(handles=keys, loc='upper left', bbox_to_anchor=(MARGIN / WIDTH, 1 - 0.44 / height), ncols=columns,
                  fontsize=9, frameon=False, borderaxespad=0, borderpad=0, handlelength=2.2)
    top, gap, first = head + 0.4, 0.85, MARGIN + 0.55
    wide = (WIDTH - first - MARGIN - 2 * gap) / 3
    axes = [place(first + number * (wide + gap), top, wide, PLOT) for number in range(3)]
    when = 'epoch' if runs[0].by_epoch else 'iteration'
    _curves(axes[0], [_values(run, metric) for run in runs], f'Validation: {metric or "no metric"}', when,
            _with_unit(metric))
    _curves(axes[1], [run.loss for run in runs], f'Training loss{", mean of each epoch" if runs[0].by_epoch else ""}',
            when, 'loss')
    _cost(axes[2], runs, metric, costs)
    top += PLOT + 0.65
    for (run, found), tall in zip(charts, heights):
        _structure(place, run, found, top, when)
        top += tall
    return figure


def _values(run: Run, metric: Optional[str]) -> Points:
    return run.metrics.get(metric, []) if metric is not None else []


class Style(TypedDict):
    """What tells a run from the others."""

    color: str
    marker: str
    linestyle: LineStyle


def _style(number: int) -> Style:
    return Style(color=drawing.PALETTE[number % len(drawing.PALETTE)], marker=MARKERS[number % len(MARKERS)],
                 linestyle=LINES[number // len(drawing.PALETTE) % len(LINES)])


def _run_keys(runs: Sequence[Run]) -> List[Line2D]:
    return [Line2D([], [], label=run.label, markersize=5, linewidth=1.5, **_style(number))
            for number, run in enumerate(runs)]


def _dress(axes: Axes, title: str, x: str, y: Optional[str]) -> None:
    axes.set_title(title, fontsize=10, loc='left', color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y or '', fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    for side in ('left', 'bottom'):
        axes.spines[side].set_color(FAINT)


def _curves(axes: Axes, curves: Sequence[Points], title: str, x: str, y: Optional[str]) -> None:
    _dress(axes, title, x, y)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    for number, points in enumerate(curves):
        style = _style(number)
        if len(points) > 30:
            style['marker'] = ''
        if points:
            axes.plot(*zip(*points), linewidth=1.5, markersize=4, **style)
    if not any(curves):
        _say(axes, 'nothing in the runs\' scalars')


def _with_unit(metric: Optional[str]) -> Optional[str]:
    percent = metric is not None and metric.startswith(('accuracy/', 'mIoU', 'mAcc', 'aAcc'))
    return f'{metric} (%)' if percent else metric


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha='center', va='center', fontsize=9, color=FAINT)


def _cost(axes: Axes, runs: Sequence[Run], metric: Optional[str], costs: Mapping[str, Mapping[str, float]]) -> None:
    known = {number: costs[run.label] for number, run in enumerate(runs)
             if run.label in costs and _values(run, metric)}
    part = 'model' if all('model' in macs for macs in known.values()) else 'backbone'
    largest = max([macs[part] for macs in known.values()] or [0])
    unit, size = ('G', 1e9) if largest >= 1e9 else ('M', 1e6)
    _dress(axes, f'Last {metric or "metric"} against cost',
           f'MACs of the {part}, average over training ({unit})', _with_unit(metric))
    for number, macs in known.items():
        style = _style(number)
        axes.plot(macs[part] / size, _values(runs[number], metric)[-1][1], color=style['color'], marker=style['marker'],
                  markersize=8, linestyle='')
    axes.margins(0.18)
    if not known:
        _say(axes, 'no run with a metric and a known cost')


def _rows(found: Sequence[Span]) -> List[str]:
    """Ops by their first appearance, each followed by what is nested in it."""
    names = list(dict.fromkeys(span.op for span in found))
    roots = list(dict.fromkeys(root_of(name) for name in names))
    return sorted(names, key=lambda name: (roots.index(root_of(name)), name != root_of(name), name.count('.branches.'),
                                           names.index(name)))


def _height(found: Sequence[Span]) -> float:
    return 1.15 + ROW * max(1, len(_rows(found)))


def _structure(place: Callable[..., Axes], run: Run, found: Sequence[Span], top: float, when: str) -> None:
    rows = _rows(found)
    labels = [indented(name) for name in rows]
    left = MARGIN + max([0.55, *(drawing.text_width(label, 8.5) + 0.1 for label in labels)])
    width = WIDTH - left - MARGIN
    axes = place(left, top + 0.4, width, ROW * max(1, len(rows)))
    _dress(axes, '', when, None)
    axes.set_title(f'Structure over time: {run.label}', fontsize=10, loc='left', color=INK, pad=6)
    axes.grid(axis='y', visible=False)
    axes.set(xlim=(0, run.end * 1.01), ylim=(max(1, len(rows)) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    colours = colormaps['Blues']
    for span in found:
        y, length = rows.index(span.op), span.end - span.begin
        axes.barh(y, length, left=span.begin, height=0.7, color=colours(0.15 + 0.08 * span.branches), linewidth=0)
        # the figure of an op expanded after the last epoch would lie beside its bar
        if length / run.end * width > 0.22:
            axes.text(span.begin + 0.07 / width * run.end, y, str(span.branches), va='center', fontsize=7.5,
                      color='white' if span.branches > 5 else INK)
        if span.removed:
            axes.plot(span.begin, y, clip_on=False, color=drawing.PALETTE[1], marker='X', markersize=6,
                      markeredgecolor='white', markeredgewidth=0.6)
        else:
            axes.plot(span.begin, y, clip_on=False, color=drawing.PALETTE[0], marker='|', markersize=11,
                      markeredgewidth=2)
    axes.set_yticks(range(len(rows)), labels, fontsize=8.5)
    for tick in axes.get_yticklabels():
        tick.set_horizontalalignment('left')
    axes.tick_params(axis='y', length=0, pad=(left - MARGIN) * 72)
    axes.spines['left'].set_visible(False)
    if not rows:
        _say(axes, 'no op was expanded')
        return
    axes.legend(handles=[
        Line2D([], [], marker='|', linestyle='', color=drawing.PALETTE[0], markersize=10, markeredgewidth=2,
               label='expanded'),
        Line2D([], [], marker='X', linestyle='', color=drawing.PALETTE[1], markersize=6, label='branches removed'),
        Patch(facecolor=colours(0.5), label='number: branches, the original among them')],
        loc='lower right', bbox_to_anchor=(1, 1), ncols=3, fontsize=8, frameon=False, borderaxespad=0.2,
        columnspacing=1.4, handletextpad=0.5)
