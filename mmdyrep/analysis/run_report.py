"""A training run in a few lines: accuracy before and after fusing, how the network grew, what was compared."""
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from mmdyrep.engine.history import History, read_history
from mmdyrep.engine.report import counted, human
from mmdyrep.fileio import PathLike, read_checkpoint
from mmdyrep.reparam import depth_of

from .run_files import NO_METRICS


def tested(folder: PathLike) -> Dict[str, float]:
    """Metrics that the newest test in a work dir came to.

    Raises:
        ValueError: If there is none.
    """
    for path in sorted(Path(folder).glob('*/*.json'), reverse=True):
        value = json.loads(path.read_text())
        metrics = {key: number for key, number in value.items()
                   if key not in NO_METRICS and isinstance(number, (int, float))}
        if metrics:
            return metrics
    raise ValueError(f'{folder} holds no test; run tools/test.py with --work-dir {folder}')


def report(folder: PathLike, augmented: PathLike, plain: PathLike, fused: PathLike) -> List[Tuple[str, str]]:
    """What happened in a run, as pairs of a heading and a text.

    Args:
        folder (str): Work dir of the training.
        augmented (str): Work dir of the test of its checkpoint.
        plain (str): Work dir of the test of the fused one.
        fused (str): The fused checkpoint.

    Raises:
        ValueError: If a file is missing or broken, with its path.
    """
    path = Path(folder) / 'dyrep' / 'history.json'
    history = History(read_history(path))
    if history.start is None:
        raise ValueError(f'{path} tells no cost of the start: nothing was trained')
    meta = read_checkpoint(fused)['meta']['mmdyrep']
    before, after = tested(augmented), tested(plain)
    lines = [(name, f'{value:.2f} augmented, {after[name]:.2f} fused to the plain network')
             for name, value in before.items() if name in after]
    lines.append((meta['compared'], f'largest difference {meta["difference"]:.1e} '
                                    f'({meta["relative"]:.1e} of the largest value)'))
    lines.append(('growth', _growth(history)))
    for kind, title in (('macs', 'MACs'), ('parameters', 'parameters')):
        lines.append((title, _cost(history, history.start, kind)))
    lines.append(('structure at the end', _shape(meta['structure']['ops'])))
    return lines


def _shape(ops: Mapping[str, Sequence[str]]) -> str:
    nested = sum(1 for name in ops if depth_of(name))
    added = sum(len(branches) - 1 for branches in ops.values())
    return (f'{counted(len(ops) - nested, "op")} of the plain network expanded, {nested} nested in them, '
            f'{counted(added, "branch", "branches")} beside the originals')


def _growth(history: History) -> str:
    grown = sum(len(entry['grown']) for entry in history.updates)
    cut = [len(item['branches']) for entry in history.updates for item in entry['cut']]
    return (f'{counted(len(history.updates), "update")}: {counted(grown, "op")} expanded, '
            f'{counted(sum(cut), "branch", "branches")} removed from {counted(len(cut), "block")}')


def _cost(history: History, start: Mapping[str, Any], kind: str) -> str:
    def of(values: Dict[str, Any]) -> str:
        return human(values.get('model', values['backbone']))

    points = [start, *history.updates]
    largest = max(points, key=lambda point: point[kind].get('model', point[kind]['backbone']))
    return (f'{of(start[kind])} plain, {of(history.average()[kind])} on average in training, '
            f'{of(largest[kind])} at most, {of(points[-1][kind])} at the end; plain again when fused')
