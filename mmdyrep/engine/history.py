"""What happened to the structure of a run, as a file and in its checkpoints."""
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

from mmdyrep.fileio import PathLike, read_json, write_json

VERSION = 1
_NUMBER = (int, float)
_COST = {'macs?': {str: _NUMBER}, 'executed?': {str: _NUMBER}, 'parameters?': {str: _NUMBER}}
# a key with a question mark may be missing
_FORM = {
    'updates?': [{'epoch': int, 'iter': int, 'scores?': [list], 'unscored?': [str], **_COST,
                  'grown': [{'op': str, 'branches': [str]}],
                  'cut': [{'op': str, 'branches': [str], 'importance?': {str: _NUMBER}}],
                  'undone?': {'op': str, 'doing': str, 'drift?': _NUMBER}, 'passed_over?': [list]}],
    'start?': {'iter': int, **_COST}, 'settings?': dict, 'iterations?': int, 'average?': _COST}
Cost = Dict[str, Dict[str, int]]  # {'macs': {'backbone': .., 'model': ..}, 'parameters': {..}}


class History:
    """Updates of a run and the costs between them.

    Args:
        state (dict, optional): Content of a ``history.json`` to go on from.

    Raises:
        ValueError: If it is no history, or of a newer version.
    """

    def __init__(self, state: Optional[Dict[str, Any]] = None) -> None:
        state = check_history({} if state is None else state, 'the history')
        self.updates: List[Dict[str, Any]] = list(state.get('updates', []))
        # cost of the structure before the first update, and the iteration it began with
        self.start: Optional[Dict[str, Any]] = state.get('start')
        self.settings: Dict[str, Any] = dict(state.get('settings', {}))
        self.iterations: int = state.get('iterations', 0)

    def begin(self, iteration: int, cost: Cost, settings: Dict[str, Any]) -> None:
        """Note the cost that the run starts with; later calls change the settings alone."""
        self.settings = settings
        if self.start is None:
            self.start = {'iter': iteration, **cost}

    def add(self, update: Dict[str, Any]) -> None:
        """Add an update that has been done."""
        self.updates.append(update)
        self.iterations = update['iter']

    def given_up(self, doing: str) -> Set[str]:
        """Ops that have moved the output in an update, which was undone, and are not tried again.

        Args:
            doing (str): 'expanding' or 'removing' (branches).
        """
        undone = [update['undone'] for update in self.updates if update.get('undone')]
        return {what['op'] for what in undone if what['doing'] == doing}

    def average(self) -> Dict[str, Dict[str, float]]:
        """MACs and parameters averaged over the iterations of training, as Tables 2 and 3 report them."""
        if self.start is None:
            return {}
        points = [self.start, *self.updates]
        ends = [point['iter'] for point in points[1:]] + [max(self.iterations, points[-1]['iter'])]
        weights = [end - point['iter'] for point, end in zip(points, ends)]
        total = sum(weights)
        if not total:
            weights, total = [0] * (len(points) - 1) + [1], 1
        return {kind: {part: sum(weight * point[kind][part] for weight, point in zip(weights, points)) / total
                       for part in self.start[kind]} for kind in ('macs', 'executed', 'parameters')
                if kind in self.start}

    def state(self) -> Dict[str, Any]:
        """Content of ``history.json``."""
        return {'version': VERSION, 'settings': self.settings, 'start': self.start, 'updates': self.updates,
                'iterations': self.iterations, 'average': self.average()}

    def write(self, folder: Path) -> None:
        """Write ``history.json``, whole or not at all."""
        write_json(folder / 'history.json', self.state())


def check_history(value: Any, where: str) -> Dict[str, Any]:
    """The content of a ``history.json``, if it is one that can be read.

    Raises:
        ValueError: If it is of a newer version, or no history; with ``where`` and what is wrong.
    """
    if not isinstance(value, dict):
        raise ValueError(f'{where} is no history of a run: it holds a {type(value).__name__}, not an object')
    version = value.get('version', VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f'{where} is no history of a run: its version is {version!r}')
    if version > VERSION:
        raise ValueError(f'{where} has version {version}, this mmdyrep reads up to {VERSION}; update mmdyrep')
    wrong = _misfit(value, _FORM, '')
    if wrong:
        raise ValueError(f'{where} is no history of a run: {wrong}')
    return value


def _misfit(value: Any, form: Any, name: str) -> Optional[str]:
    """What is wrong about a value; nothing where it has the form."""
    kinds: Any = form if isinstance(form, (type, tuple)) else type(form)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return f'{name} is {str(value)[:40]!r}'
    parts = []
    if isinstance(form, list):
        parts = [(item, form[0], f'{name}[{i}]') for i, item in enumerate(value)]
    elif isinstance(form, dict) and str in form:
        parts = [(item, form[str], f'{name}.{key}') for key, item in value.items()]
    elif isinstance(form, dict):
        for key, part in form.items():
            optional, key = key.endswith('?'), key.rstrip('?')
            if value.get(key) is not None:
                parts.append((value[key], part, f'{name}.{key}'.lstrip('.')))
            elif not optional:
                return f'{name or "it"} has no {key}'
    return next(filter(None, (_misfit(*part) for part in parts)), None)


def read_history(path: PathLike) -> Dict[str, Any]:
    """Read a ``history.json``.

    Raises:
        ValueError: If it is broken, no history, or of a newer version; with its path.
    """
    return check_history(read_json(path), str(path))


def check_saved(saved: Any) -> None:
    """Refuse what a checkpoint holds of DyRep if it is not what this version writes.

    Raises:
        ValueError: With what is wrong about it.
    """
    if isinstance(saved, dict) and 'repnas' in saved:
        raise ValueError('the checkpoint is of a run with RepNASHook; a run goes on with the hook that it began with. '
                         'To go on from its weights with another, use load_from instead of resume')
    missing = [key for key in ('history', 'saliency') if not isinstance(saved, dict) or key not in saved]
    if missing:
        raise ValueError(f'the checkpoint has an entry dyrep without {" and ".join(missing)}; was it written by '
                         'another version of mmdyrep?')
    check_history(saved['history'], "the checkpoint's history")


def structure_path(folder: Path, number: int) -> Path:
    """File of the structure after so many epochs (or iterations)."""
    return folder / f'structure_{number}.json'


def write_files(folder: Path, structures: Dict[int, Dict[str, Any]], number: Optional[int] = None) -> None:
    """Write the structures of a run that are not in its folder yet.

    Args:
        folder (Path): Made if it is not there.
        structures (dict): By the epochs (or iterations) done.
        number (int, optional): A run begins or goes on here: write all anew, delete later ones and what processes
            that were killed have left half written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begins, last = number is not None, number or 0
    if begins:
        for leftover in folder.glob('.*.json.*.tmp'):
            leftover.unlink()
    for path in folder.glob('structure_*.json') if begins else ():
        match = re.fullmatch(r'structure_(\d+)\.json', path.name)
        if match and int(match[1]) > last:
            path.unlink()
    for done, structure in structures.items():
        path = structure_path(folder, done)
        if begins or not path.exists():
            write_json(path, structure)
