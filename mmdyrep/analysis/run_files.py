"""What the files of a training run tell: curves, changes of the structure, cost."""
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from mmengine.config import Config

from mmdyrep.engine.history import read_history
from mmdyrep.fileio import PathLike

from .complexity import complexity
from .structure_file import read_ops

# which of several validation metrics is drawn, if the user does not say
USUAL = ('accuracy/top1', 'coco/bbox_mAP', 'mIoU')
NO_METRICS = ('time', 'data_time', 'memory', 'step')
Points = List[Tuple[int, float]]


@dataclass
class Run:
    """A training run, with DyRep or without.

    Args:
        folder (Path): Its work dir.
        by_epoch (bool): Whether it counts epochs; iterations otherwise.
        loss (list): Training loss by epoch (its mean) or iteration.
        metrics (dict): Validation metrics by epoch or iteration.
        history (dict, optional): Content of ``dyrep/history.json``; None for a run without DyRep.
        structure (dict): Branches of each op in the last structure of the run.
        label (str): Name among others.
    """

    folder: Path
    by_epoch: bool
    loss: Points
    metrics: Dict[str, Points]
    history: Optional[Dict[str, Any]] = None
    structure: Dict[str, List[str]] = field(default_factory=dict)
    label: str = ''

    @property
    def end(self) -> int:
        """Last epoch or iteration that anything is known of."""
        updates = self.history['updates'] if self.history else []
        steps = [step for points in [self.loss, *self.metrics.values()] for step, _ in points]
        return max([*steps, *(entry[self.unit] for entry in updates)])

    @property
    def unit(self) -> str:
        """Key of an update's time in the history."""
        return 'epoch' if self.by_epoch else 'iter'


def read_run(folder: PathLike) -> Run:
    """Read a work dir; the parts of a resumed run are joined, what a later part did again counts.

    Raises:
        ValueError: If it holds no training run, or a broken file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'no work dir {folder}')
    train: Dict[int, dict] = {}
    val: Dict[int, dict] = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        rows = _rows(path)
        _join(train, [row for row in rows if 'iter' in row])
        _join(val, [row for row in rows if 'iter' not in row and not any(key.startswith('dyrep/') for key in row)])
    if not train and not val:
        raise ValueError(f'{folder} has no {{timestamp}}/vis_data/scalars.json with anything in it; is it the work dir '
                         'of a training run?')
    by_epoch = not train or any('epoch' in row for row in train.values())
    metrics: Dict[str, Points] = {}
    for step, row in sorted(val.items()):
        for key, value in row.items():
            if key not in NO_METRICS and isinstance(value, (int, float)):
                metrics.setdefault(key, []).append((step, value))
    return Run(folder, by_epoch, _loss(train, by_epoch), metrics, *_dyrep_files(folder / 'dyrep'))


def _rows(path: Path) -> List[dict]:
    lines = path.read_text(encoding='utf-8').splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f'{path}, line {number}, is not JSON: {error}') from error
            # the last line of a killed run
    return rows


def _join(earlier: Dict[int, dict], rows: Sequence[dict]) -> None:
    if rows:
        first = min(row['step'] for row in rows)
        for step in [step for step in earlier if step >= first]:
            del earlier[step]
    earlier.update({row['step']: row for row in rows})


def _loss(train: Dict[int, dict], by_epoch: bool) -> Points:
    values: Dict[int, List[float]] = {}
    for step, row in sorted(train.items()):
        if 'loss' in row:
            values.setdefault(row.get('epoch', step) if by_epoch else step, []).append(row['loss'])
    return [(step, sum(losses) / len(losses)) for step, losses in values.items()]


def _dyrep_files(folder: Path) -> Tuple[Optional[Dict[str, Any]], Dict[str, List[str]]]:
    path = folder / 'history.json'
    if not path.is_file():
        return None, {}
    history = read_history(path)
    numbered = {int(match[1]): file for file in folder.glob('structure_*.json')
                if (match := re.fullmatch(r'structure_(\d+)\.json', file.name))}
    return history, read_ops(numbered[max(numbered)]) if numbered else {}


def read_runs(folders: Sequence[PathLike]) -> List[Run]:
    """Read work dirs and name the runs by the last parts of their paths that tell them apart.

    Raises:
        ValueError: If one holds no training run, or some count epochs and some iterations.
    """
    runs = [read_run(folder) for folder in folders]
    counts = {run.by_epoch for run in runs}
    if len(counts) > 1:
        raise ValueError('some of the runs count epochs, some iterations; draw them separately')
    paths = [run.folder.resolve().parts for run in runs]
    for run, parts in zip(runs, paths):
        others = [other for other in paths if other != parts]
        length = 1
        while length < len(parts) and any(other[-length:] == parts[-length:] for other in others):
            length += 1
        run.label = '/'.join(parts[-length:])
    return runs


def pick_metric(runs: Sequence[Run], wanted: Optional[str] = None) -> Optional[str]:
    """Validation metric to draw: the one asked for, else a usual one, else the first; None if there is none.

    Raises:
        ValueError: If no run has the metric asked for.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    if wanted is not None and wanted not in names:
        raise ValueError(f'no run has the metric {wanted!r}; there are {names}')
    return wanted or next((name for name in (*USUAL, *names) if name in names), None)


def average_macs(run: Run, shape: Optional[Sequence[int]] = None) -> Tuple[Mapping[str, float], str]:
    """MACs of backbone and model averaged over the training.

    Args:
        run (Run): With DyRep its history tells; else the config in its work dir is counted.
        shape (Sequence[int], optional): (C, H, W) to count a config at. Defaults to what the config says.

    Returns:
        tuple[dict, str]: MACs by part, empty if they can't be known; and why.
    """
    if run.history is not None:
        average = run.history.get('average') or {}
        return average.get('macs', {}), '' if average else 'its history has no average'
    configs = sorted(run.folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not configs:
        return {}, 'it has neither dyrep/history.json nor a config'
    try:
        return complexity(Config.fromfile(configs[-1]), shape=shape).form.macs, ''
    except Exception as error:  # building and running any model may fail in any way
        return {}, f'{configs[-1].name} can not be counted ({type(error).__name__}: {error})'


def all_costs(runs: Sequence[Run]) -> Tuple[Dict[str, Mapping[str, float]], Dict[str, str]]:
    """Average MACs of the runs by label, and of the others why they can't be known.

    Configs are counted at the size that the first run with DyRep has seen.
    """
    settings = [run.history.get('settings') or {} for run in runs if run.history is not None]
    shape = next((found['input_shape'] for found in settings if found.get('input_shape')), None)
    macs, reasons = {}, {}
    for run in runs:
        macs[run.label], reasons[run.label] = average_macs(run, shape)
    return ({label: found for label, found in macs.items() if found},
            {label: reason for label, reason in reasons.items() if not macs[label]})


@dataclass
class Span:
    """Time in which an op had a number of branches, the original among them."""

    op: str
    begin: int
    end: int
    branches: int
    removed: bool  # whether it begins with branches taken out


def spans(run: Run) -> List[Span]:
    """When each op was expanded, and when branches of it were removed, ordered by the beginning."""
    updates = run.history['updates'] if run.history else []
    grown = {item['op'] for entry in updates for item in entry['grown']}
    alive: Dict[str, Span] = {op: Span(op, 0, 0, number, False)
                              for op, number in _at_start(run, updates, grown).items()}
    done: List[Span] = []

    def change(op: str, now: int, by: int, removed: bool) -> None:
        before = alive.pop(op, None)
        if before is not None:
            before.end = now
            done.append(before)
        number = (before.branches if before else 1) + by
        if number > 1:
            alive[op] = Span(op, now, now, number, removed)

    for entry in updates:
        now = entry[run.unit]
        for item in entry['grown']:
            change(item['op'], now, len(item['branches']), False)
        for item in entry['cut']:
            change(item['op'], now, -len(item['branches']), True)
            gone = tuple(f'{item["op"]}.branches.{branch}.' for branch in item['branches'])
            for op in [op for op in alive if op.startswith(gone)]:
                change(op, now, -alive[op].branches, True)
    for span in alive.values():
        span.end = run.end
    return sorted([*done, *alive.values()], key=lambda span: span.begin)


def _at_start(run: Run, updates: Sequence[dict], grown: set) -> Dict[str, int]:
    """Branches of the ops that were expanded before the first update: a structure the run started from."""
    told = ((run.history or {}).get('start') or {}).get('structure')
    if told is not None:
        return {op: len(branches) for op, branches in told.items()}
    number = {op: len(branches) for op, branches in run.structure.items() if op not in grown}
    for entry in reversed(updates):
        for item in entry['cut']:
            if item['op'] not in grown:
                number[item['op']] = 1 + len(item['importance'])
    return number
