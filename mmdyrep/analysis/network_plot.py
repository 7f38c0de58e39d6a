"""The structure of a whole network as a table of branches, coloured by importance."""
from typing import Dict, List, Tuple

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from mmdyrep.engine.report import counted
from mmdyrep.reparam import BRANCHES, depth_of
from mmdyrep.reparam.structure import root_of

from . import drawing
from .drawing import FAINT, GRID, INK
from .structure_file import Structure, indented

CELL, ROW = 0.62, 0.27  # inches
ORIGINAL, PRESENT = '#BBBBBB', '#56B4E9'


def plot_network(structure: Structure) -> Figure:
    """Table of a network: a row per op, nested ones indented, a column per branch.

    Args:
        structure (Structure): Of a file.

    Returns:
        Figure: Cells carry the importance s_j if the file has weights.
    """
    rows = _rows(structure)
    used = set(branch for names in [*structure.ops.values(), *structure.removed.values()] for branch in names)
    columns = [branch for branch in BRANCHES if branch in used]
    labels = [indented(name) for name in rows]
    added = sum(len(branches) - 1 for branches in structure.ops.values())
    title = f'Structure of {structure.source}'
    nested = sum(1 for name in structure.ops if depth_of(name))
    subtitle = (f'{counted(len(structure.ops) - nested, "op")} expanded'
                + (f' and {nested} nested' if nested else '')
                + f', {counted(added, "branch", "branches")} beside the originals')
    left = 0.25 + max(drawing.text_width(label, 8.5) for label in labels)
    body = CELL * len(columns), ROW * len(rows)
    needed = max(drawing.text_width(title, 11, weight='bold'), drawing.text_width(subtitle, 9), 5.2)
    top, bottom = 1.0, 1.15 if structure.importance else 0.55
    width = max(left + body[0] + 0.25, needed + 0.4)
    height = top + body[1] + bottom
    figure = drawing.new_figure(width, height)
    figure.text(0.2 / width, 1 - 0.16 / height, title, fontsize=11, weight='bold', va='top', color=INK)
    figure.text(0.2 / width, 1 - 0.4 / height, subtitle, fontsize=9, va='top', color=FAINT)
    axes = figure.add_axes((left / width, bottom / height, body[0] / width, body[1] / height))
    _table(axes, structure, rows, labels, columns)
    _keys(figure, structure, len(rows) > len(structure.ops))
    return figure


def _rows(structure: Structure) -> List[str]:
    groups: Dict[str, List[str]] = {}
    for name in structure.ops:
        groups.setdefault(root_of(name), []).append(name)
    return [name for root in structure.order or groups for name in groups.get(root, [root])]


def _scale(structure: Structure) -> Normalize:
    values = [value for branches in structure.importance.values() for value in branches.values()]
    return Normalize(0, max([*values, 1e-6]))


def _table(axes: Axes, structure: Structure, rows: List[str], labels: List[str], columns: List[str]) -> None:
    colours, scale = colormaps[drawing.IMPORTANCE], _scale(structure)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    for y, name in enumerate(rows):
        for x, branch in enumerate(columns):
            value = structure.importance.get(name, {}).get(branch)
            if branch in structure.ops.get(name, ()):
                face = colours(scale(value)) if value is not None else ORIGINAL if branch == 'kxk' else PRESENT
                axes.add_patch(Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=face, linewidth=0))
            if value is not None:
                red, green, blue, _ = to_rgba(face)
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                axes.text(x + 0.5, y + 0.5, drawing.short(value), ha='center', va='center', fontsize=7.5,
                          color='white' if dark else INK)
            elif branch in structure.removed.get(name, ()):
                axes.plot(x + 0.5, y + 0.5, marker='x', color=FAINT, markersize=5)
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns, fontsize=8)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], labels, fontsize=8.5)
    for tick, name in zip(axes.get_yticklabels(), rows):
        tick.set_color(INK if name in structure.ops else FAINT)
    # indentation needs names that begin at one place
    offset = max(drawing.text_width(label, 8.5) for label in labels) * 72
    for tick in axes.get_yticklabels():
        tick.set_horizontalalignment('left')
    axes.tick_params(axis='y', length=0, pad=offset + 4)
    axes.tick_params(axis='x', length=0, top=True, bottom=False, labeltop=True, labelbottom=False, pad=3)
    axes.set_facecolor('#f7f7f7')
    for y in range(1, len(rows)):
        axes.axhline(y, color=GRID if not depth_of(rows[y]) else '#f0f0f0', linewidth=0.6, zorder=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _keys(figure: Figure, structure: Structure, waiting: bool) -> None:
    width, height = figure.get_size_inches()
    keys: List[Tuple[Artist, str]] = [(Patch(facecolor=ORIGINAL), 'original')]
    if not structure.importance:
        keys.append((Patch(facecolor=PRESENT), 'branch'))
    if any(structure.removed.values()):
        keys.append((Line2D([], [], marker='x', color=FAINT, linestyle='', markersize=5), 'removed'))
    if waiting:
        keys.append((Patch(facecolor='#f7f7f7', edgecolor=GRID), 'empty row: candidate, not expanded'))
    figure.legend([key for key, _ in keys], [text for _, text in keys], loc='lower left', ncols=len(keys),
                  bbox_to_anchor=(0.14 / width, 0.08 / height), fontsize=8, frameon=False, borderaxespad=0,
                  handlelength=1.2, columnspacing=1.4)
    if structure.importance:
        bar = figure.add_axes((0.2 / width, 0.72 / height, min(3.0, width - 0.5) / width, 0.12 / height))
        figure.colorbar(ScalarMappable(_scale(structure), drawing.IMPORTANCE), cax=bar, orientation='horizontal')
        bar.tick_params(labelsize=7.5, length=2, color=FAINT)
        bar.set_title(drawing.IMPORTANCE_TEXT, fontsize=8, loc='left', color=INK,
                      pad=3)
        bar.spines['outline'].set_visible(False)
