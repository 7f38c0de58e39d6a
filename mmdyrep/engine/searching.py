"""A search of the structure in a runner: what is searched, gates on model and averaged copies, and its end."""
import math
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple, cast

import torch
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mmdyrep.dynamics import drift, eval_output
from mmdyrep.dynamics.architecture import Architecture, BranchKey
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.dropping import drop
from mmdyrep.models.finding import unwrapped
from mmdyrep.reparam import Block, blocks_of
from mmdyrep.reparam.gating import Gate, set_gates, slope
from mmdyrep.reparam.left_out import is_left_out

from .distributed import check_agreement, greatest, wrap_anew
from .ema import averaged_copies
from .following import bring_along, models_of, round_of
from .modes import modes_kept
from .stepping import Steppers

Ops = Dict[str, List[str]]


def searchable(backbone: DyRepBackbone, always: Sequence[str]) -> List[BranchKey]:
    """Branches that a search decides about: added ones that learn, in the order of the network.

    Args:
        backbone (DyRepBackbone): With blocks.
        always (Sequence[str]): Branches that run in any case.
    """
    return [(name, branch) for name, block in blocks_of(backbone).items() for branch in block.added
            if branch not in always and block.branches[branch].bn.weight.requires_grad]


def slopes(backbone: DyRepBackbone, keys: Iterable[BranchKey]) -> List[Optional[Tensor]]:
    """Derivative of the loss by the gate of each of these branches, from the gradients that there are."""
    return [slope(cast(Block, backbone.get_submodule(name)).branches[branch].bn) for name, branch in keys]


def close(models: Iterable[nn.Module], keys: Sequence[BranchKey], training: Iterable[BranchKey] = (),
          evaluation: Iterable[BranchKey] = ()) -> None:
    """Let those of the searched branches run that masks have.

    Args:
        models (Iterable[nn.Module]): A backbone and its averaged copies.
        keys (Sequence[tuple]): What is searched; none: all branches run.
        training (Iterable[tuple]): Branches that run in train mode.
        evaluation (Iterable[tuple]): Branches that run in eval mode.
    """
    masks = set(training), set(evaluation)
    closed: Dict[str, Tuple[Set[str], Set[str]]] = {name: (set(), set()) for name, _ in keys}
    for name, branch in keys:
        for mask, names in zip(masks, closed[name]):
            if (name, branch) not in mask:
                names.add(branch)
    gates = {name: Gate(*map(frozenset, both)) for name, both in closed.items()}
    for model in models:
        set_gates(blocks_of(model), gates)


def masked(structure: Dict[str, Any], keys: Iterable[BranchKey], mask: Iterable[BranchKey]) -> Dict[str, Any]:
    """The structure that a mask leaves."""
    gone = set(keys) - set(mask)
    ops = {name: [branch for branch in branches if (name, branch) not in gone]
           for name, branches in structure['ops'].items()}
    return {**structure, 'ops': {name: branches for name, branches in ops.items() if len(branches) > 1}}


def left_out(backbone: DyRepBackbone, architecture: Architecture) -> Ops:
    """Branches, by op, that the mask of alpha does not have; both in the order of the network."""
    gone = set(architecture.keys) - set(architecture.chosen(architecture.draw().mask))
    found = {name: [branch for branch in block.added if (name, branch) in gone]
             for name, block in blocks_of(backbone).items()}
    return {name: branches for name, branches in found.items() if branches}


def finish(runner: Runner, backbone: DyRepBackbone, gone: Ops, batch: Any, shape: Sequence[int],
           steppers: Steppers, when: str) -> Dict[str, Any]:
    """Take what the final mask leaves out of the network; optimizer, schedulers, averaged copies and DDP follow.

    Args:
        runner (Runner): Between two iterations; the gates in evaluation are those of the final mask.
        backbone (DyRepBackbone): Of its model.
        gone (dict): Branches to drop, by op.
        batch (Any): To compare the function on, before and after.
        shape (Sequence[int]): (C, H, W) that MACs are counted at.
        steppers (Steppers): Whatever steps the parameters.
        when (str): For messages.

    Returns:
        dict: ``drift`` (and ``drift_ema``), how far the eval output has moved, and ``seconds``.
    """
    begin = time.perf_counter()
    round_ = round_of(runner, backbone, [batch], shape, 1)
    parts = [(round_.model, backbone, round_.exact_run or round_.run), *(
        (copy.model, copy.backbone, copy.run) for copy in round_.copies)]
    before = [eval_output(*part, batch) for part in parts]
    changing, parameters = [part[1] for part in parts], set(round_.model.parameters())
    with modes_kept(runner, backbone):
        for name, branches in gone.items():
            drop(backbone, name, branches)
            for copy in round_.copies:
                copy.drop(backbone, name, branches)
        close(changing, ())
        bring_along(runner, parameters, steppers)
        for copy in round_.copies:
            copy.relist()
        check_agreement(models_of(runner), f'after {when}')
        wrap_anew(runner)
    after = [eval_output(*part, batch) for part in parts]
    moved = greatest([drift(*pair) for pair in zip(before, after)]) if all(before) else [None] * len(parts)
    told = [value if value is not None and math.isfinite(value) else None for value in moved]
    return {'drift': told[0], **({'drift_ema': told[1]} if len(told) > 1 else {}),
            'seconds': round(time.perf_counter() - begin, 3)}


@torch.no_grad()
def reset_norms(runner: Runner) -> int:
    """Let the running statistics of all batch norms in train mode begin anew, in averaged copies, too.

    Norms that work with fixed statistics, or are left out behind a block, stay as they are.

    Returns:
        int: How many of the model were reset.
    """
    own = {name: norm for name, norm in unwrapped(runner.model).named_modules()
           if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats and not is_left_out(norm)}
    for norm in own.values():
        norm.reset_running_stats()
    for copy in averaged_copies(runner):
        modules = dict(copy.model.named_modules())
        for name in own:
            modules[name].reset_running_stats()
    return len(own)


# ---------------------------------------------------------------------- several processes

def find_unused(runner: Runner) -> None:
    """Wrap the model anew so that parameters without gradient are waited for by none; later wraps are as configured."""
    wrapper = runner.model
    if isinstance(wrapper, DistributedDataParallel) and not wrapper.find_unused_parameters:
        with _set_unused(runner):
            wrap_anew(runner)


@contextmanager
def _set_unused(runner: Runner) -> Iterator[None]:
    key, cfg = 'find_unused_parameters', runner.cfg
    place = cfg if cfg.get('model_wrapper_cfg') is None else cfg.model_wrapper_cfg
    before: Tuple[bool, Any] = key in place, place.get(key)
    place[key] = True
    try:
        yield
    finally:
        if before[0]:
            place[key] = before[1]
        else:
            del place[key]
