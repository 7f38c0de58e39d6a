"""What all figures share: colours, sizes of text, the way to a file."""
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmdyrep.fileio import PathLike, atomic_path

FORMATS = ('png', 'pdf', 'svg')
DPI = 150
INK, FAINT, GRID = '#222222', '#767676', '#dddddd'
# Okabe and Ito's palette, told apart with every kind of colour blindness; without yellow, too pale for a line
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
IMPORTANCE = 'cividis_r'  # dark is much
IMPORTANCE_TEXT = 'importance s = mean |γ| of the branch / mean |γ| of kxk'


def picture_format(path: PathLike) -> str:
    """Format that the extension of a file name asks for.

    Raises:
        ValueError: If it is none that can be written.
    """
    kind = Path(path).suffix[1:].lower()
    if kind not in FORMATS:
        raise ValueError(f'the name of the picture, {path}, must end in one of {", ".join("." + f for f in FORMATS)}')
    return kind


def new_figure(width: float, height: float) -> Figure:
    """Figure of a size in inches, outside of pyplot and its global state."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def text_width(text: str, size: float, **style) -> float:
    """Width of a text in inches."""
    figure = new_figure(1, 1)
    renderer = FigureCanvasAgg(figure).get_renderer()
    extent = figure.text(0, 0, text, fontsize=size, **style).get_window_extent(renderer)
    return extent.width / DPI


def save(figure: Figure, path: PathLike) -> None:
    """Write a figure in the format of the file's extension, whole or not at all."""
    kind = picture_format(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI)


def short(value: float) -> str:
    """Importance in about four characters: 0.012, 0.35, 1.20."""
    return f'{value:.3f}' if value < 0.0995 else f'{value:.2f}' if value < 9.95 else f'{value:.3g}'
