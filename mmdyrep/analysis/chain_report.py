"""Table 5 of the paper out of the runs of tools/run_small_chain.sh: markdown, JSON, picture."""
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from matplotlib.figure import Figure

from mmdyrep.engine.history import read_history
from mmdyrep.engine.report import human
from mmdyrep.fileio import PathLike, atomic_path, write_json

from . import drawing
from .run_report import tested

# heading: metric of a test, factor to percent
METRICS = {'top-1': ('accuracy/top1', 1), 'mAP': ('coco/bbox_mAP', 100), 'mIoU': ('mIoU', 1)}
PRETRAINED = ('resnet18-w16_b64', 'dyrep_resnet18-w16_b64')
DETECTOR, SEGMENTOR = 'faster-rcnn_r18-w16{}_fpn_b8', 'pspnet_r18-w16-d8{}_b8'
# method, stage, whether the pre-training was with DyRep, part of the names of the downstream runs
ROWS = (('-', '-', False, ''), ('DyRep', 'C', True, '-dyrep-c'), ('DyRep', 'D', False, '-dyrep-d'),
        ('DyRep', 'C+D', True, '-dyrep-cd'))
# in percent points: fusing moves outputs by float32's rounding, and a prediction at a threshold may flip
TOLERANCE = 0.1


def read_chain(folder: PathLike) -> Dict[str, Any]:
    """Figures of a finished chain.

    Args:
        folder (str): Its work dir, with a folder for each run.

    Returns:
        dict: ``rows``, each with ``method``, ``stage`` and the metrics in percent, and ``runs`` by name, each with
        ``metric``, ``value``, ``fused`` (None for a plain network), ``macs`` on average, ``grown``, ``cut``,
        ``seconds`` of its training.

    Raises:
        ValueError: If a test is missing.
    """
    folder = Path(folder)
    rows: List[Dict[str, Any]] = []
    runs: Dict[str, Dict[str, Any]] = {}
    for method, stage, grown, part in ROWS:
        names = {'top-1': PRETRAINED[grown], 'mAP': DETECTOR.format(part), 'mIoU': SEGMENTOR.format(part)}
        for heading, name in names.items():
            runs.setdefault(name, _run(folder / name, heading))
        rows.append({'method': method, 'stage': stage, **{key: runs[name]['value'] for key, name in names.items()}})
    return {'version': 1, 'rows': rows, 'runs': runs}


def _run(folder: Path, heading: str) -> Dict[str, Any]:
    metric, factor = METRICS[heading]

    def value(test: str) -> float:
        found = tested(folder / test)
        if metric not in found:
            raise ValueError(f'{folder / test} has no {metric}, it has {sorted(found)}')
        return round(found[metric] * factor, 4)

    found: Dict[str, Any] = {'metric': metric, 'value': value('test'), 'fused': None, 'macs': None, 'grown': 0,
                             'cut': 0, 'seconds': None}
    history = folder / 'dyrep' / 'history.json'
    if history.is_file():
        content = read_history(history)
        updates = content['updates']
        found.update(fused=value('test_fused'), macs=content['average']['macs']['backbone'],
                     plain_macs=content['start']['macs']['backbone'],
                     grown=sum(len(entry['grown']) for entry in updates),
                     cut=sum(len(item['branches']) for entry in updates for item in entry['cut']))
    done = folder / 'train.done'
    if done.is_file():
        found['seconds'] = int(done.read_text())
    return found


def worst_fusing(chain: Dict[str, Any]) -> Optional[float]:
    """Largest difference that fusing made to a metric, in percent points; None if nothing was fused."""
    moved = [abs(run['value'] - run['fused']) for run in chain['runs'].values() if run['fused'] is not None]
    return max(moved, default=None)


def check_fusing(chain: Dict[str, Any]) -> None:
    """Refuse a chain in which a fused network does not do as the augmented one.

    Raises:
        ValueError: With the name of the run and both values.
    """
    for name, run in chain['runs'].items():
        if run['fused'] is not None and not abs(run['value'] - run['fused']) <= TOLERANCE:
            raise ValueError(f'{name}: {run["metric"]} is {run["value"]} before fusing and {run["fused"]} after')


def markdown(chain: Dict[str, Any]) -> str:
    """The table in the form of the paper's, and a second one about the single runs."""
    lines = ['| Rep method | Rep stage | top-1 | mAP | mIoU |', '|---|---|---|---|---|']
    for row in chain['rows']:
        values = [f'{row[heading]:.2f}' if heading != 'mAP' else f'{row[heading]:.1f}' for heading in METRICS]
        lines.append(f'| {" | ".join([row["method"], row["stage"], *values])} |')
    heads = ('run', 'metric', 'as trained', 'fused', 'ops expanded', 'branches removed',
             'MACs of the backbone, average', 'training (s)')
    lines += ['', f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    for name, run in chain['runs'].items():
        fused, macs, seconds = ('' if run[key] is None else text(run[key]) for key, text in (
            ('fused', lambda value: f'{value:.2f}'), ('macs', human), ('seconds', str)))
        if macs:
            macs += f' (plain {human(run["plain_macs"])})'
        grown, cut = (run['grown'], run['cut']) if run['fused'] is not None else ('', '')
        cells = (name, run['metric'], f'{run["value"]:.2f}', fused, grown, cut, macs, seconds)
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines) + '\n'


def plot_chain(chain: Dict[str, Any]) -> Figure:
    """One panel a metric, one point a row; the line is the plain network."""
    figure = drawing.new_figure(9, 2.6)
    labels = [row['stage'] if row['method'] == '-' else f'{row["method"]} {row["stage"]}' for row in chain['rows']]
    labels[0] = 'plain'
    for number, heading in enumerate(METRICS):
        axes = figure.add_subplot(1, len(METRICS), number + 1)
        _panel(axes, heading, labels, [row[heading] for row in chain['rows']])
        if number:
            axes.tick_params(labelleft=False)
    figure.tight_layout(w_pad=2)
    return figure


def _panel(axes: Any, heading: str, labels: Sequence[str], values: List[float]) -> None:
    places = range(len(values))
    axes.axvline(values[0], color=drawing.FAINT, linewidth=1, linestyle='--')
    for place, value in zip(places, values):
        colour = drawing.FAINT if place == 0 else drawing.PALETTE[0]
        axes.plot([values[0], value], [place, place], color=colour, linewidth=2)
        axes.plot(value, place, 'o', color=colour, markersize=7)
        axes.annotate(f'{value:.2f}', (value, place), xytext=(0, 7), textcoords='offset points', ha='center',
                      fontsize=8, color=drawing.INK, bbox=dict(facecolor='white', linewidth=0, pad=0.5))
    axes.set_yticks(list(places), labels, fontsize=9)
    # no less than a point wide: smaller differences shall look small
    middle, half = (min(values) + max(values)) / 2, max(0.65 * (max(values) - min(values)), 0.5)
    axes.set(ylim=(len(values) - 0.5, -0.7), xlim=(middle - half, middle + half))
    axes.set_title(f'{heading} (%)', fontsize=10, loc='left', color=drawing.INK)
    axes.grid(axis='x', color=drawing.GRID, linewidth=0.6)
    axes.tick_params(length=0, labelsize=8)
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)


def write_report(chain: Dict[str, Any], folder: PathLike) -> List[Path]:
    """Write ``table.md``, ``table.json`` and ``table.png`` into a folder; the paths of them."""
    paths = [Path(folder) / f'table.{kind}' for kind in ('md', 'json', 'png')]
    with atomic_path(paths[0]) as temporary:
        temporary.write_text(markdown(chain), encoding='utf-8')
    write_json(paths[1], chain)
    drawing.save(plot_chain(chain), paths[2])
    return paths
