"""The structure that a file tells of, with what else it tells about the branches."""
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from torch import Tensor

from mmdyrep.dynamics.policy import relative_gammas
from mmdyrep.engine.history import check_history, read_history
from mmdyrep.fileio import PathLike, read_checkpoint, read_json
from mmdyrep.reparam import BRANCHES, depth_of, ops_in_keys
from mmdyrep.reparam.structure import VERSION, parent_of, root_of

Pair = Tuple[int, int]
Ops = Dict[str, List[str]]


@dataclass
class Structure:
    """Blocks of a network; names are from the backbone's root.

    Args:
        source (str): Name of the file.
        ops (dict): Branches of each op, parents before what is nested in them.
        importance (dict): s_j of the added branches of each op; empty if the file has no weights.
        kernels (dict): Rows and columns of each op's kernel; empty likewise.
        without_conv1 (set): Average branches that have no 1x1 convolution (depthwise ops).
        waiting (list): Candidates of the plain network that are not expanded, where the file knows them.
        removed (dict): Branches that Dep has taken out, where the file knows them.
        order (list): Ops of the plain network, expanded or waiting, in the order to show them.
    """

    source: str
    ops: Ops
    importance: Dict[str, Dict[str, float]] = field(default_factory=dict)
    kernels: Dict[str, Pair] = field(default_factory=dict)
    without_conv1: set = field(default_factory=set)
    waiting: List[str] = field(default_factory=list)
    removed: Ops = field(default_factory=dict)
    order: List[str] = field(default_factory=list)

    def nested_in(self, op: str, branch: str) -> Optional[str]:
        """Name of the op nested in a branch, if there is one."""
        name = f'{op}.branches.{branch}.conv'
        return name if name in self.ops else None


def read_structure(path: PathLike) -> Structure:
    """Read a checkpoint or the JSON file of a structure.

    Raises:
        ValueError: If it is neither, or no op is expanded in it.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if path.suffix == '.json':
        found, history = Structure(path.name, read_ops(path)), _beside(path)
    else:
        checkpoint = read_checkpoint(path)
        found = _from_state(path, checkpoint['state_dict'])
        saved = checkpoint.get('dyrep')
        history = check_history(saved.get('history', {}) if isinstance(saved, dict) else {}, f'the history in {path}')
    if not found.ops:
        raise ValueError(f'{path} has no blocks: the network in it is plain, no op is expanded')
    _add_history(found, history.get('updates') or [])
    shown = {root_of(op) for op in found.ops} | set(found.waiting)
    # a structure's own order is that of the network, but it does not say where the others belong
    order = found.order or (list(found.ops) if not found.waiting else sorted(shown, key=natural))
    found.order = [name for name in order if name in shown]
    found.ops = _in_order(found.ops, found.order)
    return found


def read_ops(path: PathLike) -> Ops:
    """Branches of each op out of the JSON file of a structure.

    Raises:
        ValueError: If it is none, or of a newer version; with its path.
    """
    value = read_json(path)
    if isinstance(value, Mapping) and 'updates' in value:
        raise ValueError(f'{path} is the history of a run; plot_history.py shows it, this takes a structure')
    ops = value.get('ops') if isinstance(value, Mapping) else None
    if not isinstance(ops, Mapping):
        raise ValueError(f"{path} is no structure, which is {{'version': 1, 'ops': {{op: [branch, ...]}}}}")
    if not isinstance(value.get('version'), int) or not 1 <= value['version'] <= VERSION:
        raise ValueError(f'{path}: version {value.get("version")!r} of the structure; '
                         f'this mmdyrep reads 1 to {VERSION}')
    for op, branches in ops.items():
        if not isinstance(branches, list) or 'kxk' not in branches or set(map(str, branches)) - set(BRANCHES):
            raise ValueError(f'{path}: {op} has branches {branches!r}; it needs kxk and others of {list(BRANCHES)}')
        parent, _, branch = (parent_of(op) or '').rpartition('.branches.')
        if parent and branch not in ops.get(parent, ()):
            raise ValueError(f'{path}: {op} lies in a branch that the structure does not have')
    return {op: [name for name in BRANCHES if name in branches] for op, branches in ops.items()}


def _from_state(path: Path, state: Mapping[str, Tensor]) -> Structure:
    blocks = [key for key in state if f'{root_of(key)}.branches.kxk.bn.weight' in state]
    found = Structure(path.name, {})
    # in a checkpoint of a whole model names count from the backbone
    match = re.match(r'(?:[^.]+\.)*?backbone\.', blocks[0]) if blocks else None
    prefix = match[0] if match and all(key.startswith(match[0]) for key in blocks) else ''
    blocks_found = ops_in_keys(blocks)
    for op, branches in blocks_found.items():
        name = op[len(prefix):]
        found.ops[name] = branches
        found.importance[name] = relative_gammas({key: state[f'{op}.branches.{key}.bn.weight'] for key in branches})
        conv = f'{op}.branches.kxk.conv'
        while conv in blocks_found:
            conv = f'{conv}.branches.kxk.conv'
        if f'{conv}.weight' not in state:
            raise ValueError(f'{path} has a part of the block {op} only: no {conv}.weight')
        shape = tuple(state[f'{conv}.weight'].shape)
        if len(shape) != 4:
            raise ValueError(f'{path}: {conv}.weight is of shape {shape}, which no 2D convolution has')
        found.kernels[name] = shape[2:]
        if f'{op}.branches.1x1_avg.conv1.weight' not in state:
            found.without_conv1.add(name)
    found.order = list(dict.fromkeys(_op_of(key[len(prefix):]) for key in state if key.startswith(prefix)))
    return found


def _op_of(key: str) -> str:
    root = root_of(key)
    return root if root != key else key.rpartition('.')[0]


def _beside(path: Path) -> Mapping[str, Any]:
    """History of the run that wrote a structure, up to it; empty where it was not written by a run."""
    history = path.with_name('history.json')
    number = re.fullmatch(r'structure_(\d+)', path.stem)
    if not number or not history.is_file():
        return {}
    value = read_history(history)
    unit = 'epoch' if value.get('settings', {}).get('by_epoch', True) else 'iter'
    return {'updates': [entry for entry in value.get('updates', []) if entry[unit] <= int(number[1])]}


def _add_history(found: Structure, updates: List[Mapping[str, Any]]) -> None:
    for entry in updates:
        for item in entry['cut']:
            there, removed = found.ops.get(item['op'], []), found.removed.setdefault(item['op'], [])
            removed += [name for name in item['branches'] if name not in there and name not in removed]
    if updates:
        last = updates[-1]
        known = [name for name, _ in last.get('scores', [])] + last.get('unscored', [])
        waiting = [name for name in known if name not in found.ops and not depth_of(name)
                   and (not found.order or name in found.order)]
        found.waiting = sorted(waiting, key=found.order.index if found.order else natural)


def natural(name: str) -> List[Any]:
    """Sorts names as people do: ``features.10`` after ``features.9``."""
    return [(0, int(part), '') if part.isdigit() else (1, 0, part) for part in re.split(r'(\d+)', name)]


def indented(op: str) -> str:
    """Label of an op below the one that it is nested in."""
    depth = depth_of(op)
    branch = op.rsplit('.', 2)[-2] if depth else ''
    return '      ' * depth + f'in its {branch}' if depth else op


def _in_order(ops: Ops, order: List[str]) -> Ops:
    """Each op followed by what is nested in it."""
    def place(op: str) -> List[int]:
        root = root_of(op)
        branches = re.findall(r'\.branches\.([^.]+)', op[len(root):])
        return [order.index(root), *(list(BRANCHES).index(branch) for branch in branches)]

    return dict(sorted(ops.items(), key=lambda item: place(item[0])))
