"""The benchmark's tables, its JSON and its plot."""
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from rich.console import Console
from rich.table import Table

_TITLES = {'blocks': 'Blocks, forward and backward', 'training': 'Iterations of training (forward, backward, SGD)',
           'evaluation': 'Evaluation, without gradients',
           'updates': 'Scores and updates, 20 batches, in iterations of the plain network',
           'history': 'A whole training: time integrated over its structures'}
_KEYS = ('shape', 'network', 'batch')


def _mib(value: Optional[int]) -> str:
    return '' if value is None else f'{value / 2**20:.1f}'


def _ratio(value: Optional[float]) -> str:
    return '' if value is None else f'{value:.2f}'


def _table(rows: List[Dict[str, Any]]) -> Tuple[int, List[List[str]]]:
    """How many columns hold words, and the cells; the first row is the head."""
    keys = [key for key in _KEYS if key in rows[0]]
    memory = next((key for key in ('kept_bytes', 'peak_bytes') if key in rows[0]), None)
    cells = [[*keys, '', 'ms', 'ratio'] + ([memory.replace('_bytes', ' MiB'), 'ratio'] if memory else [])]
    for row in rows:
        cells.append([*(str(row[key]) for key in keys), row['name'], f'{1e3 * row["seconds"]:.4g}',
                      _ratio(row['time_ratio'])])
        if memory:
            cells[-1] += [_mib(row[memory]), _ratio(row['memory_ratio'])]
    return len(keys) + 1, cells


def print_report(result: Dict[str, Any], console: Optional[Console] = None) -> None:
    """Print a table for each section, and on what machine it was measured."""
    console = console or Console(width=None if Console().is_terminal else 120)
    for section, rows in result['sections'].items():
        words, (head, *cells) = _table(rows)
        table = Table(title=_TITLES[section], title_justify='left')
        for number, column in enumerate(head):
            table.add_column(column, justify='left' if number < words else 'right', no_wrap=True)
        for line in cells:
            table.add_row(*line)
        console.print(table)
    for note in notes(result):
        console.print(note, highlight=False, soft_wrap=True, markup=False)


def markdown(result: Dict[str, Any], title: str, picture: Optional[str] = None) -> str:
    """The same as a page.

    Args:
        result (dict): As `run` returns it.
        title (str): Of the page.
        picture (str, optional): Path of the plot, relative to the page.
    """
    lines = [f'# {title}', '', f'    {result["machine"]["command"]}', '']
    for section, rows in result['sections'].items():
        words, (head, *cells) = _table(rows)
        lines += [f'## {_TITLES[section]}', '', *(f'| {" | ".join(line)} |' for line in (
            head, ['---'] * words + ['---:'] * (len(head) - words), *cells)), '']
    lines += [line + '\n' for line in notes(result)]
    return '\n'.join(lines + ([f'![Time, ratio to the plain one]({picture})', ''] if picture else []))


def notes(result: Dict[str, Any]) -> List[str]:
    """What a reader has to know of a measurement."""
    machine, settings = result['machine'], result['settings']
    shown = ', '.join(f'{key}={settings[key]}' for key in ('batch', 'size', 'block_batch', 'rounds', 'amp',
                                                          'channels_last'))
    others = machine['others']
    where = (f'{settings["device"]} {machine["device"]}, {machine["threads"]} threads of {machine["cores"]} cores, '
             f'torch {machine["torch"]}, Python {machine["python"]}, mmdyrep {machine["mmdyrep"]}')
    return [f'{machine["command"]}: {shown}; {where}; {result["seconds"]} s. Medians of interleaved rounds; ratios are '
            'medians of each round\'s ratio to the first row. Kept: bytes that forward keeps for backward, without '
            'parameters and buffers. Peak: most bytes of tensors at a time, parameters and momentum included.',
            *([] if others is None else [f'Other processes took {others:.0%} of the cores\' time'
                                         + (': times are worth less than ratios.' if others > 0.05 else '.')]),
            *(['--quick: one round on small inputs, which shows that it runs, not what it costs.']
              if settings['quick'] else [])]


def plot(result: Dict[str, Any], out: Path) -> None:
    """Bars of the time ratios of each section."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    sections = result['sections']
    heights = [max(2.0, 0.28 * len(rows)) for rows in sections.values()]
    figure, axes = plt.subplots(len(sections), 1, figsize=(9, sum(heights)), squeeze=False,
                                gridspec_kw={'height_ratios': heights}, layout='constrained')
    for axis, (section, rows) in zip(axes[:, 0], sections.items()):
        labels = [' '.join([*(str(row[key]) for key in _KEYS if key in row), row['name']]) for row in rows]
        bars = axis.barh(range(len(rows)), [row['time_ratio'] for row in rows])
        axis.bar_label(bars, fmt='%.2f', padding=2, fontsize=7)
        axis.set_yticks(range(len(rows)), labels, fontsize=7)
        axis.invert_yaxis()
        axis.axvline(1, color='0.6', linewidth=0.8)
        axis.set_title(_TITLES[section] + ': time, ratio to the plain one', fontsize=9, loc='left')
    figure.savefig(out, dpi=150)
    plt.close(figure)
