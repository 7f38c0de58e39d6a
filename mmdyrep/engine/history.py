"""What happened to the structure of a run, as a file and in its checkpoints."""
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from mmdyrep.fileio import write_json

VERSION = 1
Cost = Dict[str, Dict[str, int]]  # {'macs': {'backbone': .., 'model': ..}, 'parameters': {..}}


class History:
    """Updates of a run and the costs between them.

    Args:
        state (dict, optional): Content of a ``history.json`` to go on from.
    """

    def __init__(self, state: Optional[Dict[str, Any]] = None) -> None:
        state = state or {}
        if state.get('version', VERSION) > VERSION:
            raise ValueError(f'the history has version {state["version"]}, this mmdyrep reads up to {VERSION}')
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
                       for part in self.start[kind]} for kind in ('macs', 'parameters')}

    def state(self) -> Dict[str, Any]:
        """Content of ``history.json``."""
        return {'version': VERSION, 'settings': self.settings, 'start': self.start, 'updates': self.updates,
                'iterations': self.iterations, 'average': self.average()}

    def write(self, folder: Path) -> None:
        """Write ``history.json``, whole or not at all."""
        write_json(folder / 'history.json', self.state())


def structure_path(folder: Path, number: int) -> Path:
    """File of the structure after so many epochs (or iterations)."""
    return folder / f'structure_{number}.json'


def write_files(folder: Path, structures: Dict[int, Dict[str, Any]], number: Optional[int] = None) -> None:
    """Write the structures of a run that are not in its folder yet.

    Args:
        folder (Path): Made if it is not there.
        structures (dict): By the epochs (or iterations) done.
        number (int, optional): Delete later ones, which a resumed run has not reached yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob('structure_*.json') if number is not None else ():
        match = re.fullmatch(r'structure_(\d+)\.json', path.name)
        if match and int(match[1]) > number:
            path.unlink()
    for done, structure in structures.items():
        path = structure_path(folder, done)
        if not path.exists():
            write_json(path, structure)
