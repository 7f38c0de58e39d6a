"""How far the branches of a run have turned since they were new, and what they contribute, out of its checkpoints."""
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor

from mmdyrep.fileio import PathLike, read_checkpoint
from mmdyrep.reparam import ops_in_keys

State = Mapping[str, Tensor]
_CHECKPOINT = re.compile(r'(epoch|iter)_(\d+)\.pth')


@dataclass(frozen=True)
class Learned:
    """What became of a branch.

    Args:
        op (str): The op that it is of, with the way to the backbone.
        branch (str): Its name; ``kxk`` is the original.
        age (int): Epochs, or iterations, from the first checkpoint that has the branch to the last one.
        cosine (float, optional): Between its convolutions' weights then and at the end, all of a branch taken as one
            vector; None without convolutions, and where one was expanded in between.
        share (float): Of the variance of the block's output at the end, 0 to 1: each branch ends in a batch norm, so
            that its variance is gamma^2; what branches have in common is not counted.
    """

    op: str
    branch: str
    age: int
    cosine: Optional[float]
    share: float


def read_learning(folder: PathLike) -> List[Learned]:
    """Branches that are there at the end of a run, of all ops that were expanded.

    Args:
        folder (str): Work dir whose checkpoints were all kept (``default_hooks.checkpoint.max_keep_ckpts=-1``).

    Raises:
        ValueError: If it has fewer than two checkpoints, or gaps between them, so that ages would be wrong.
    """
    paths = _checkpoints(Path(folder))
    born: Dict[Tuple[str, str], Tuple[int, Optional[Tensor]]] = {}
    last: State = {}
    for step, path in paths:
        last = read_checkpoint(path)['state_dict']
        there = {(op, branch) for op, branches in ops_in_keys(last).items() for branch in branches}
        # one that was removed and came again is a new one
        born = {key: value for key, value in born.items() if key in there}
        for op, branch in there - born.keys():
            born[op, branch] = step, _weights(last, op, branch)
    found = []
    for op, branches in ops_in_keys(last).items():
        power = {branch: last[f'{op}.branches.{branch}.bn.weight'].double().square().sum().item()
                 for branch in branches}
        total = sum(power.values())
        for branch in branches:
            step, start = born[op, branch]
            found.append(Learned(op, branch, paths[-1][0] - step, _cosine(start, _weights(last, op, branch)),
                                 power[branch] / total if total else 0.0))
    return found


def _checkpoints(folder: Path) -> List[Tuple[int, Path]]:
    found = sorted((int(match[2]), path) for path in folder.glob('*.pth')
                   for match in [_CHECKPOINT.fullmatch(path.name)] if match)
    steps = [step for step, _ in found]
    apart = {second - first for first, second in zip(steps, steps[1:])}
    if len(apart) != 1 or steps[0] != min(apart):
        raise ValueError(f'{folder} has checkpoints of {", ".join(map(str, steps)) or "nothing"}; what branches were '
                         'at their start takes all of a run: default_hooks.checkpoint.max_keep_ckpts=-1')
    return found


def _weights(state: State, op: str, branch: str) -> Optional[Tensor]:
    """Convolutions of a branch as one vector; None if it has none of its own."""
    own = re.compile(re.escape(f'{op}.branches.{branch}.') + r'conv\d*\.weight')
    found = [state[key].double().flatten() for key in sorted(state) if own.fullmatch(key)]
    return torch.cat(found) if found else None


def _cosine(start: Optional[Tensor], end: Optional[Tensor]) -> Optional[float]:
    if start is None or end is None or start.shape != end.shape:
        return None
    return float(torch.nn.functional.cosine_similarity(start, end, dim=0))
