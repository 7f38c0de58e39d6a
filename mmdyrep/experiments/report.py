"""The report of an experiment: Markdown, JSON, a picture; the paper's figures beside ours."""
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from matplotlib.figure import Figure

from mmdyrep.analysis.block_plot import plot_block
from mmdyrep.analysis.drawing import save
from mmdyrep.analysis.structure_file import Structure, read_structure
from mmdyrep.engine.report import human
from mmdyrep.fileio import PathLike, atomic_path, write_json

from .cells import accuracy, cost, mean
from .counts import table_of_counts
from .experiment import NAMES, TOP1, Experiment, Study
from .learning import draw_learning, learning_lines
from .pairs import compared
from .pictures import draw, draw_counts
from .results import table_of
from .study_picture import draw_study
from .study_report import NOTE, study_lines

LEGEND = ('Last values: mean and sample deviation over the seeds; the interval of the mean is Student\'s, as is '
          'that of the difference to the first row, taken seed by seed. MACs and '
          'parameters are averages over the training, those of the branches; minutes are of the machine that trained, '
          'which did other work beside.')
COUNTED = 'MACs and parameters with all branches in every op, and how many times those of the plain network that is.'


def write_report(folder: PathLike, name: str, experiment: Experiment, results: Sequence[Mapping[str, Any]],
                 errors: Mapping[str, str], waiting: Sequence[str], command: str,
                 options: Mapping[str, Any], checkpoint: Optional[Path] = None) -> List[Path]:
    """Write ``NAME.md``, ``NAME.json`` and, of one result or more, ``NAME.png``.

    Args:
        folder (str): Where to.
        name (str): Of the experiment.
        experiment (Experiment): What was asked.
        results (Sequence[Mapping]): Of the runs that are done, with ``row``, ``column`` and ``seed``; or counts.
        errors (Mapping[str, str]): What went wrong, by run.
        waiting (Sequence[str]): Runs that are not done.
        command (str): What makes this report.
        options (Mapping): Settings that were changed in every run.
        checkpoint (Path, optional): Of the network whose first block is drawn (picture 'stem').

    Returns:
        list[Path]: The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    counted = experiment.picture == 'counts'
    content: Dict[str, Any] = {
        'version': 1, 'experiment': name, 'command': command, 'options': dict(options),
        'table': list(results) if counted else _table(experiment, results),
        'runs': [] if counted else _runs(experiment, results),
        'failed': dict(errors), 'waiting': list(waiting)}
    figure = None
    if checkpoint is not None:
        figure, content['stem'] = _stem(checkpoint)
    elif content['table']:
        figure = _figure(experiment, content['table'], results)
    paths = [folder / f'{name}.md', folder / f'{name}.json']
    write_json(paths[1], content)
    if figure is not None:
        paths.append(folder / f'{name}.png')
        save(figure, paths[2])
    with atomic_path(paths[0]) as temporary:
        temporary.write_text(markdown(experiment, content, f'{name}.png' if figure is not None else None),
                             encoding='utf-8')
    return paths


def _figure(experiment: Experiment, table: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]) -> Figure:
    if experiment.picture == 'counts':
        return draw_counts(experiment, results)
    if experiment.picture == 'learning':
        return draw_learning(experiment.title, results)
    return draw_study(experiment, table) if isinstance(experiment, Study) else draw(experiment, table, results)


def _table(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    table = table_of(results)
    return compared(table, experiment.compared_with) if isinstance(experiment, Study) else table


def _runs(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    # of a study's many runs neither table nor picture tells the way, and the file would get large
    left_out = ('curve', 'updates') if isinstance(experiment, Study) else ()
    return [{key: value for key, value in result.items() if key not in left_out} for result in results]


def _stem(checkpoint: Path) -> Tuple[Figure, Dict[str, Any]]:
    """Picture of the stem's block, or, where that was never expanded, of the first one; and what it shows."""
    structure: Structure = read_structure(checkpoint)
    op = 'conv1' if 'conv1' in structure.ops else next(iter(structure.ops))
    inside = [name for name in structure.ops if name == op or name.startswith(f'{op}.')]
    return plot_block(structure, op), {'op': op, 'branches': {name: structure.ops[name] for name in inside},
                                       'importance': {name: structure.importance.get(name, {}) for name in inside}}


def markdown(experiment: Experiment, content: Mapping[str, Any], picture: Optional[str]) -> str:
    """The report as a page."""
    lines = [f'# {experiment.title}', '', experiment.question, '', f'    {content["command"]}', '']
    options = content['options']
    if options:
        lines += ['In every run: ' + ', '.join(f'`{key}={value}`' for key, value in options.items()) + '.', '']
    lines += [*table_of_content(experiment, content), '', _legend(experiment), '']
    if experiment.theirs:
        lines += ['Further rows of the paper, of networks that others have trained: '
                  + ', '.join(f'{row} {value}' for row, value in experiment.theirs) + '.', '']
    if picture:
        lines += [f'![{experiment.title}]({picture})', '']
    if content['waiting']:
        lines += [f'Not done yet: {"; ".join(content["waiting"])}.', '']
    if content['failed']:
        lines += ['Failed:', '', *(f'- {name}: {error}' for name, error in content['failed'].items()), '']
    return '\n'.join(lines)


def _legend(experiment: Experiment) -> str:
    return NOTE if isinstance(experiment, Study) else COUNTED if experiment.picture == 'counts' else LEGEND


def table_of_content(experiment: Experiment, content: Mapping[str, Any]) -> List[str]:
    """Lines of Markdown: the figures of a report."""
    if experiment.picture == 'counts':
        return table_of_counts(content['table'])
    if isinstance(experiment, Study):
        learned = learning_lines(content['runs']) if experiment.picture == 'learning' and content['runs'] else []
        return [*study_lines(experiment, content['table']), *([''] if learned else []), *learned]
    lines = table_lines(experiment, content['table'])
    return [*lines, '', _stem_line(content['stem'])] if 'stem' in content else lines


def _stem_line(stem: Mapping[str, Any]) -> str:
    what = [f'`{op}`: ' + ', '.join(f'{branch} {value:.3f}' for branch, value in values.items())
            for op, values in stem['importance'].items()]
    return 'Importance of the branches, relative to the original convolution: ' + '; '.join(what) + '.'


def table_lines(experiment: Experiment, table: Sequence[Mapping[str, Any]]) -> List[str]:
    """The table of results as lines of Markdown, the paper's figures beside."""
    paper = _paper(experiment)
    theirs = list(dict.fromkeys(column for row in paper.values() for column in row))
    # the paper's networks and tasks have the names of ours, its data sets have not
    same = {entry['column'] for entry in table} <= set(theirs)
    metrics = {entry['metric'] for entry in table} or {TOP1}
    one = NAMES[next(iter(metrics))] if len(metrics) == 1 else 'value'
    head = ['', experiment.column, f'{one} (%)', '95 % interval', 'to the first', 'seeds', 'MACs', 'parameters',
            'ops expanded', 'branches removed', 'minutes',
            *(['**the paper\'s**'] if same and theirs else [f'**the paper\'s**, {column}' for column in theirs])]
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    for entry in table:
        row = paper.get(entry['row'], {})
        columns = [entry['column']] if same and theirs else theirs
        column = entry['column'] if len(metrics) == 1 else f'{entry["column"]} ({NAMES[entry["metric"]]})'
        cells = [entry['row'], column, accuracy(entry['value']), _interval(entry['value']), _difference(entry),
                 str(entry['value']['number']), cost(entry, 'macs'), cost(entry, 'parameters'), mean(entry, 'grown'),
                 mean(entry, 'cut'), f'{entry["seconds"]["mean"] / 60:.1f}',
                 *(_theirs(row.get(column, {})) for column in columns)]
        lines.append('| ' + ' | '.join(cells) + ' |')
    # rows that are called otherwise at small size
    rest = {row: columns for row, columns in paper.items() if row not in {entry['row'] for entry in table}}
    if rest and table:
        lines += ['', '**The paper\'s** further rows: ' + '; '.join(
            f'{row} {_theirs(figures)}' for row, columns in rest.items() for figures in columns.values()) + '.']
    return lines


def _paper(experiment: Experiment) -> Dict[str, Dict[str, Mapping[str, float]]]:
    found: Dict[str, Dict[str, Mapping[str, float]]] = {}
    for run in experiment.full:
        if run.paper:
            found.setdefault(run.row, {})[run.column] = run.paper
    return found


def _theirs(paper: Mapping[str, float]) -> str:
    costs = [human(paper[key]) for key in ('macs', 'parameters') if key in paper]
    return ' '.join([f'{paper["value"]:.2f}', *([f'({", ".join(costs)})'] if costs else [])]) if paper else '-'


def _interval(value: Mapping[str, float]) -> str:
    if 'interval' not in value:
        return '-'
    return f'{value["mean"] - value["interval"]:.2f} to {value["mean"] + value["interval"]:.2f}'


def _difference(entry: Mapping[str, Any]) -> str:
    found = entry.get('difference')
    if found is None:
        return '-'
    return f'{found["mean"]:+.2f}' + (f' ± {found["interval"]:.2f}' if 'interval' in found else '')
