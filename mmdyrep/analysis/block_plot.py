"""One block as a tree of branches, nested blocks inside (Figure 6)."""
from dataclasses import dataclass
from typing import List, Optional, Tuple, Union

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Patch

from . import drawing
from .drawing import FAINT, INK
from .structure_file import Structure

COLOURS = {'conv': '#7FC4EC', 'pointwise': '#D3EBF8', 'average': '#F3C26B', 'norm': '#E4E4E4'}
NAMES = {'conv': 'K×K, 1×K or K×1 convolution', 'pointwise': '1×1 convolution', 'average': 'average pooling',
         'norm': 'batch norm (BN)'}
# inches
BOX, BOX_HEIGHT, GAP, BETWEEN, INSET = 0.74, 0.27, 0.13, 0.14, 0.12
# from where the input comes in to the first box; from the last box to where the sum goes out
HEAD, FOOT = 0.52, 0.98


@dataclass
class Box:
    """A layer of a branch."""

    kind: str
    text: str
    width: float = BOX
    height: float = BOX_HEIGHT


@dataclass
class Column:
    """A branch: layers from the input on, one of them may be a block again."""

    name: str
    value: Optional[float]
    parts: List[Union[Box, 'Tree']]

    @property
    def width(self) -> float:
        return max(part.width for part in self.parts)

    @property
    def height(self) -> float:
        return sum(part.height for part in self.parts) + GAP * (len(self.parts) - 1)


@dataclass
class Tree:
    """A block with its size; nested ones have a frame, which is part of the size."""

    op: str
    columns: List[Column]
    nested: bool

    @property
    def inset(self) -> float:
        return INSET if self.nested else 0

    @property
    def width(self) -> float:
        return sum(column.width for column in self.columns) + BETWEEN * (len(self.columns) - 1) + 2 * self.inset

    @property
    def height(self) -> float:
        return HEAD + max(column.height for column in self.columns) + FOOT


def build(structure: Structure, op: str, nested: bool = False) -> Tree:
    """Tree of a block: what each branch computes, layer by layer."""
    rows, columns = structure.kernels.get(op, ('K', 'K'))
    kernels = {'1x1': (1, 1), '1xk': (1, columns), 'kx1': (rows, 1)}

    def conv(size: Tuple) -> Box:
        return Box('pointwise' if tuple(size) == (1, 1) else 'conv', '{}×{}'.format(*size))

    found = []
    for branch in structure.ops[op]:
        inner = structure.nested_in(op, branch)
        last = build(structure, inner, True) if inner else conv(kernels.get(branch, (rows, columns)))
        parts: List[Union[Box, Tree]] = [Box('norm', 'BN')]
        if branch == '1x1_avg':
            parts.insert(0, Box('average', f'AVG {rows}×{columns}'))
        elif branch != 'residual':
            parts.insert(0, last)
        if branch == '1x1_kxk' or branch == '1x1_avg' and op not in structure.without_conv1:
            parts[:0] = [conv((1, 1)), Box('norm', 'BN')]
        value = structure.importance.get(op, {}).get(branch)
        found.append(Column(branch, 1.0 if branch == 'kxk' and op in structure.importance else value, parts))
    return Tree(op, found, nested)


def plot_block(structure: Structure, op: str) -> Figure:
    """Draw a block from its input to its output, the importance of each branch below it (Figure 6).

    Args:
        structure (Structure): Of a file.
        op (str): Name of an expanded op, nested or not.

    Raises:
        ValueError: If no op of this name is expanded; it lists those that are.
    """
    if op not in structure.ops and op.startswith('backbone.'):
        op = op[len('backbone.'):]
    if op not in structure.ops:
        raise ValueError(f'no block {op!r} in {structure.source}; there are:\n  ' + '\n  '.join(structure.ops))
    tree = build(structure, op)
    title = f'{op} in {structure.source}'
    note = f'number below a branch: {drawing.IMPORTANCE_TEXT}' if structure.importance else \
        'no importances: the file holds a structure without weights'
    kinds = [kind for kind in COLOURS if kind in _kinds(tree)]
    margin, top, bottom = 0.3, 0.72, 0.8
    needed = max(drawing.text_width(title, 11, weight='bold'), drawing.text_width(note, 8),
                 sum(drawing.text_width(NAMES[kind], 8) + 0.42 for kind in kinds))
    width, height = max(tree.width, needed) + 2 * margin, tree.height + top + bottom
    figure = drawing.new_figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    axes.text(margin, height - 0.16, title, fontsize=11, weight='bold', va='top', color=INK)
    left = (width - tree.width) / 2
    centre = width / 2
    axes.text(centre, height - top + 0.06, 'input', ha='center', va='bottom', fontsize=8, color=INK)
    _draw(axes, tree, left, height - top, 1)
    axes.text(centre, bottom - 0.02, 'output', ha='center', va='top', fontsize=8, color=INK)
    axes.text(margin, 0.36, note, fontsize=8, va='center', color=FAINT)
    figure.legend([Patch(facecolor=COLOURS[kind], edgecolor=FAINT, linewidth=0.6) for kind in kinds],
                  [NAMES[kind] for kind in kinds], loc='lower left', bbox_to_anchor=(margin / width, 0.06 / height),
                  ncols=len(kinds), fontsize=8, frameon=False, borderaxespad=0, borderpad=0, handlelength=1.2,
                  columnspacing=1.2)
    return figure


def _kinds(tree: Tree) -> set:
    return set().union(*({part.kind} if isinstance(part, Box) else _kinds(part)
                         for column in tree.columns for part in column.parts))


def _line(axes: Axes, xs: List[float], ys: List[float], level: int) -> None:
    axes.plot(xs, ys, color=FAINT, linewidth=1, zorder=level, solid_capstyle='round')


def _draw(axes: Axes, tree: Tree, left: float, top: float, level: int) -> None:
    centre, bottom = left + tree.width / 2, top - tree.height
    if tree.nested:
        axes.add_patch(FancyBboxPatch((left, bottom), tree.width, tree.height,
                                      boxstyle='round,pad=0,rounding_size=0.08', facecolor='white',
                                      edgecolor=FAINT, linewidth=0.9, linestyle='--', zorder=level))
    fork, join = top - 0.13, bottom + 0.62
    xs, x = [], left + tree.inset
    for column in tree.columns:
        xs.append(x + column.width / 2)
        x += column.width + BETWEEN
    _line(axes, [centre, centre], [top, fork], level + 1)
    _line(axes, [min(centre, xs[0]), max(centre, xs[-1])], [fork, fork], level + 1)
    _line(axes, [min(centre, xs[0]), max(centre, xs[-1])], [join, join], level + 1)
    for column, x in zip(tree.columns, xs):
        _line(axes, [x, x], [fork, join], level + 1)
        paper = dict(facecolor='white', linewidth=0, pad=1.2)
        axes.text(x, fork - 0.19, column.name, ha='center', va='center', fontsize=8, color=INK, zorder=level + 2,
                  weight='bold', bbox=paper)
        if column.value is not None:
            axes.text(x, join + 0.18, drawing.short(column.value), ha='center', va='center', fontsize=8.5, color=INK,
                      zorder=level + 2, bbox=paper)
        y = top - HEAD
        for part in column.parts:
            if isinstance(part, Tree):
                _draw(axes, part, x - part.width / 2, y, level + 10)
            else:
                _box(axes, part, x, y, level + 3)
            y -= part.height + GAP
    _line(axes, [centre, centre], [join, bottom], level + 1)
    axes.add_patch(Circle((centre, join - 0.14), 0.085, facecolor='white', edgecolor=INK, linewidth=1,
                          zorder=level + 3))
    axes.text(centre, join - 0.147, '+', ha='center', va='center', fontsize=10, color=INK, zorder=level + 4)
    axes.text(centre, join - 0.40, '× scale', ha='center', va='center', fontsize=8, color=INK, zorder=level + 4,
              bbox=dict(facecolor='white', edgecolor=FAINT, linewidth=0.6, pad=1.8))


def _box(axes: Axes, box: Box, x: float, top: float, level: int) -> None:
    axes.add_patch(FancyBboxPatch((x - box.width / 2, top - box.height), box.width, box.height,
                                  boxstyle='round,pad=0,rounding_size=0.04', facecolor=COLOURS[box.kind],
                                  edgecolor=FAINT, linewidth=0.6, zorder=level))
    axes.text(x, top - box.height / 2 - 0.005, box.text, ha='center', va='center', fontsize=8, color=INK,
              zorder=level + 1)


