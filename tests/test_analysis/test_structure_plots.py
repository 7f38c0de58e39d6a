"""Pictures of structures show each branch once, with its importance, and nothing covers anything."""
import itertools
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from matplotlib.text import Text

from mmdyrep.analysis import drawing
from mmdyrep.analysis.block_plot import build, plot_block
from mmdyrep.analysis.network_plot import plot_network
from mmdyrep.analysis.structure_file import Structure, read_structure
from mmdyrep.reparam import BRANCHES

NESTED = 'stem.branches.1x1_kxk.conv'


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def apart(figure, artists):
    """Whether no two of the artists overlap, and all lie in the figure."""
    renderer = figure.canvas.get_renderer()
    boxes = [artist.get_window_extent(renderer) for artist in artists]
    width, height = figure.get_size_inches() * figure.dpi
    inside = all(0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height for box in boxes)
    return inside and not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))


def words(figure):
    figure.canvas.draw()
    found = list(figure.texts)
    for axes in figure.axes:
        found += [child for child in axes.get_children() if isinstance(child, Text)]
        found += [axes.xaxis.label, axes.yaxis.label] if axes.axison else []
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            found += [label for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
                      for label in (tick.label1, tick.label2) if label.get_visible()]
    return [text for text in found if text.get_text()]


def chain(structure, op, branch):
    column = next(column for column in build(structure, op).columns if column.name == branch)
    return [getattr(part, 'text', 'block') for part in column.parts]


def test_each_branch_is_drawn_as_its_chain_of_layers(checkpoint):
    structure = read_structure(checkpoint)
    assert chain(structure, 'stem', 'kxk') == ['7×7', 'BN']
    assert chain(structure, 'stem', '1x1') == ['1×1', 'BN']
    assert chain(structure, 'stem', '1xk') == ['1×7', 'BN']
    assert chain(structure, 'stem', '1x1_kxk') == ['1×1', 'BN', 'block', 'BN']
    assert chain(structure, NESTED, '1x1_avg') == ['1×1', 'BN', 'AVG 7×7', 'BN']
    assert chain(structure, 'deep', '1x1_avg') == ['AVG 3×3', 'BN']
    assert chain(structure, 'deep', 'residual') == ['BN']


def test_a_block_shows_branches_importances_and_the_block_nested_in_it(checkpoint):
    figure = plot_block(read_structure(checkpoint), 'stem')
    found = texts(figure)
    names = [text for text in found if text in BRANCHES]
    assert sorted(names) == sorted(['kxk', '1x1', '1x1_kxk', '1xk', 'kxk', '1x1_avg'])
    assert {'1.00', '0.50', '0.25', '0.050', '0.010'} <= set(found) and found.count('1.00') == 2
    patches = figure.axes[0].patches
    assert sum(isinstance(patch, Circle) for patch in patches) == 2, 'a sum for each block'
    # 2 + 2 + 3 + 2 layers in the stem, 2 + 4 in the nested block, and the frame of that
    assert sum(isinstance(patch, FancyBboxPatch) for patch in patches) == 9 + 6 + 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        'K×K, 1×K or K×1 convolution', '1×1 convolution', 'average pooling', 'batch norm (BN)']
    assert apart(figure, words(figure))


def test_a_nested_block_has_a_picture_of_its_own_and_a_prefix_is_no_matter(checkpoint):
    structure = read_structure(checkpoint)
    found = texts(plot_block(structure, f'backbone.{NESTED}'))
    assert [text for text in found if text in BRANCHES] == ['kxk', '1x1_avg'] and '0.010' in found


def test_without_weights_there_are_no_numbers():
    structure = Structure('s.json', {'conv': ['kxk', '1x1', 'kx1']})
    figure = plot_block(structure, 'conv')
    assert {'K×K', '1×1', 'K×1'} <= set(texts(figure))
    assert not any(text.replace('.', '').isdigit() for text in texts(figure))
    assert any('without weights' in text for text in texts(figure))
    table = plot_network(structure)
    assert texts(table) == [] and len(table.axes) == 1, 'no numbers and no colour bar'


def test_an_unknown_op_is_refused_with_those_there_are(checkpoint):
    with pytest.raises(ValueError, match=rf"no block 'body' in epoch_3.pth(?s:.*)\n  stem\n  {NESTED}\n  deep"):
        plot_block(read_structure(checkpoint), 'body')


def test_the_network_has_a_row_per_op_with_what_is_nested_waiting_and_removed(checkpoint):
    figure = plot_network(read_structure(checkpoint))
    table, bar = figure.axes
    rows = [tick.get_text() for tick in table.get_yticklabels()]
    assert [row.strip() for row in rows] == ['stem', 'in its 1x1_kxk', 'body', 'deep']
    assert rows[1].startswith(' '), 'nested ops are indented'
    assert [tick.get_text() for tick in table.get_xticklabels()] == [
        'kxk', '1x1', '1x1_kxk', '1x1_avg', '1xk', 'residual']
    assert sum(isinstance(patch, Rectangle) for patch in table.patches) == 3 + 4 + 2
    assert sorted(text.get_text() for text in table.texts) == ['0.010', '0.010', '0.010', '0.050', '0.25', '0.50']
    crosses = [line for line in table.lines if line.get_marker() == 'x']
    assert [tuple(float(value[0]) for value in line.get_data()) for line in crosses] == [(1.5, 3.5)], 'at deep, 1x1'
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        'original', 'removed', 'empty row: candidate, not expanded']
    assert 'mean |γ|' in bar.get_title(loc='left')
    assert apart(figure, words(figure))


@pytest.mark.parametrize('count', [1, 30])
def test_the_table_is_legible_whatever_the_number_of_ops(count):
    ops = {f'stage{n}.a_rather_long_name.branches.{n}.conv': list(BRANCHES) for n in range(count)}
    importance = {op: dict.fromkeys(list(BRANCHES)[1:], 0.5) for op in ops}
    figure = plot_network(Structure('s.pth', ops, importance))
    assert len(figure.axes[0].get_yticklabels()) == count and len(texts(figure)) == 6 * count
    assert apart(figure, words(figure))


def test_dark_cells_are_the_important_ones(checkpoint):
    table = plot_network(read_structure(checkpoint)).axes[0]
    cells = {(int(patch.get_x()), int(patch.get_y())): sum(patch.get_facecolor()[:3]) for patch in table.patches}
    assert cells[(1, 0)] < cells[(2, 0)] < cells[(4, 0)], 's of 0.5, 0.25 and 0.05'


@pytest.mark.parametrize('kind', ['png', 'pdf', 'svg'])
def test_pictures_have_the_format_of_their_name(kind, checkpoint, tmp_path):
    path = tmp_path / f'picture.{kind}'
    drawing.save(plot_block(read_structure(checkpoint), 'stem'), path)
    content = path.read_bytes()
    if kind == 'svg':
        assert ElementTree.fromstring(content).tag.endswith('svg')
    else:
        assert content.startswith({'png': b'\x89PNG', 'pdf': b'%PDF'}[kind])
    with pytest.raises(ValueError, match=r'\.png, \.pdf, \.svg'):
        drawing.save(plot_block(read_structure(checkpoint), 'stem'), tmp_path / 'picture.bmp')
    assert [file.name for file in tmp_path.iterdir() if file.suffix != '.pth'] == [path.name]
