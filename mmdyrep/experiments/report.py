"""The report of an experiment: Markdown, JSON, a picture; the paper's figures beside ours."""
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from mmdyrep.analysis.drawing import FAINT, GRID, INK, PALETTE, new_figure, save
from mmdyrep.engine.report import human
from mmdyrep.fileio import PathLike, atomic_path, write_json

from .index import Experiment
from .results import table_of


def write_report(folder: PathLike, name: str, experiment: Experiment, results: Sequence[Mapping[str, Any]],
                 errors: Mapping[str, str], waiting: Sequence[str], command: str,
                 options: Mapping[str, Any]) -> List[Path]:
    """Write ``NAME.md``, ``NAME.json`` and, of one result or more, ``NAME.png``.

    Args:
        folder (str): Where to.
        name (str): Of the experiment.
        experiment (Experiment): What was asked.
        results (Sequence[Mapping]): Of the runs that are done, with ``row``, ``column`` and ``seed``.
        errors (Mapping[str, str]): What went wrong, by run.
        waiting (Sequence[str]): Runs that are not done.
        command (str): What makes this report.
        options (Mapping): Settings that were changed in every run.

    Returns:
        list[Path]: The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = table_of(results)
    paths = [folder / f'{name}.md', folder / f'{name}.json']
    picture = folder / f'{name}.png' if table else None
    write_json(paths[1], {'version': 1, 'experiment': name, 'command': command, 'options': dict(options),
                          'table': table, 'runs': list(results), 'failed': dict(errors), 'waiting': list(waiting)})
    with atomic_path(paths[0]) as temporary:
        temporary.write_text(markdown(experiment, table, errors, waiting, command, options, picture), encoding='utf-8')
    if picture:
        draw(experiment, table, picture)
        paths.append(picture)
    return paths


def markdown(experiment: Experiment, table: Sequence[Mapping[str, Any]], errors: Mapping[str, str],
             waiting: Sequence[str], command: str, options: Mapping[str, Any], picture: Optional[Path]) -> str:
    """The report as a page."""
    lines = [f'# {experiment.title}', '', experiment.question, '', f'    {command}', '']
    if options:
        lines += ['In every run: ' + ', '.join(f'`{key}={value}`' for key, value in options.items()) + '.', '']
    paper = _paper(experiment)
    columns = list(dict.fromkeys(column for row in paper.values() for column in row))
    head = ['', 'data', 'top-1 (%)', '95 % interval', 'seeds', 'MACs', 'parameters', 'ops expanded', 'branches removed',
            'minutes', *(f'**the paper\'s**, {column}' for column in columns)]
    lines += ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for entry in table:
        cells = [entry['row'], entry['column'], _accuracy(entry['top1']), _interval(entry['top1']),
                 str(entry['top1']['number']), human(entry['macs']['mean']), human(entry['parameters']['mean']),
                 _mean(entry, 'grown'), _mean(entry, 'cut'), f'{entry["seconds"]["mean"] / 60:.1f}',
                 *(_theirs(paper.get(entry['row'], {}).get(column, {})) for column in columns)]
        lines.append('| ' + ' | '.join(cells) + ' |')
    lines += ['', 'Top-1 after the last epoch: mean and sample deviation over the seeds; the interval of the mean is '
              'Student\'s. MACs and parameters are averages over the training, those of the branches; minutes are of '
              'the machine that trained.', '']
    if picture:
        lines += [f'![{experiment.title}]({picture.name})', '']
    if waiting:
        lines += [f'Not done yet: {"; ".join(waiting)}.', '']
    if errors:
        lines += ['Failed:', '', *(f'- {name}: {error}' for name, error in errors.items()), '']
    return '\n'.join(lines)


def _paper(experiment: Experiment) -> Dict[str, Dict[str, Mapping[str, float]]]:
    found: Dict[str, Dict[str, Mapping[str, float]]] = {}
    for run in experiment.full:
        if run.paper:
            found.setdefault(run.row, {})[run.column] = run.paper
    return found


def _theirs(paper: Mapping[str, float]) -> str:
    cost = [human(paper[key]) for key in ('macs', 'parameters') if key in paper]
    return ' '.join([f'{paper["top1"]:.2f}', *([f'({", ".join(cost)})'] if cost else [])]) if paper else '-'


def _accuracy(top1: Mapping[str, float]) -> str:
    return f'{top1["mean"]:.2f}' + (f' ± {top1["deviation"]:.2f}' if 'deviation' in top1 else '')


def _interval(top1: Mapping[str, float]) -> str:
    if 'interval' not in top1:
        return '-'
    return f'{top1["mean"] - top1["interval"]:.2f} to {top1["mean"] + top1["interval"]:.2f}'


def _mean(entry: Mapping[str, Any], key: str) -> str:
    return f'{entry[key]["mean"]:.3g}' if key in entry else '-'


def draw(experiment: Experiment, table: Sequence[Mapping[str, Any]], path: PathLike) -> None:
    """Each run a dot, the mean and its 95 % interval beside; a row for each method."""
    figure = new_figure(6.5, 1.1 + 0.32 * len(table))
    axes = figure.add_axes((0.28, 0.5 / figure.get_figheight(), 0.68, 1 - 0.95 / figure.get_figheight()))
    columns = list(dict.fromkeys(entry['column'] for entry in table))
    for place, entry in enumerate(table):
        colour = PALETTE[columns.index(entry['column']) % len(PALETTE)]
        top1 = entry['top1']
        axes.plot(top1['values'], [place] * len(top1['values']), 'o', markersize=3.5, color=colour, alpha=0.5)
        axes.errorbar(top1['mean'], place + 0.22, xerr=top1.get('interval'), fmt='|', color=colour, capsize=3)
    labels = [entry['row'] if len(columns) == 1 else f'{entry["row"]}, {entry["column"]}' for entry in table]
    axes.set_yticks(range(len(table)), labels, fontsize=8, color=INK)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_xlabel(f'top-1 (%) on {" and ".join(columns)}: each seed, mean and 95 % interval', fontsize=8, color=INK)
    axes.set_title(experiment.title, fontsize=9, color=INK, loc='left')
    axes.tick_params(labelsize=8, color=FAINT)
    axes.grid(axis='x', color=GRID, linewidth=0.6)
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)
    save(figure, path)
