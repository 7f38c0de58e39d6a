"""What can't be searched is refused in words, before the first iteration."""
from typing import Any, Dict, Optional, Sequence, Union

from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel

from mmdyrep.models import DyRepBackbone
from mmdyrep.reparam import BRANCHES

from .history import check_history
from .loops import training_length

# of the authors' code
ADAM = dict(lr=1e-4, betas=(0.5, 0.999), weight_decay=5e-4)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_settings(warmup: int, search: int, constraint: Union[int, float], alpha: Optional[Dict[str, Any]],
                   always: Sequence[str], interval: int) -> Dict[str, Any]:
    """Refuse settings of the hook that make no sense, with the name of the setting.

    Returns:
        dict: All settings of Adam for alpha.
    """
    for name, value, least in (('warmup', warmup, 0), ('search', search, 1), ('interval', interval, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f'RepNASHook: {name} must be a whole number of at least {least}, got {value!r}')
    if not _is_number(constraint) or not constraint > 0 or isinstance(constraint, float) and constraint > 1:
        raise ValueError('RepNASHook: constraint (C) is a number of branches, or a share of them above 0 and up to '
                         f'1.0; got {constraint!r}')
    unknown = sorted(set(alpha or {}) - set(ADAM))
    if unknown:
        raise ValueError(f'RepNASHook: alpha takes {", ".join(ADAM)}, not {unknown[0]}')
    adam = {**ADAM, **(alpha or {})}
    adam['betas'] = tuple(adam['betas']) if isinstance(adam['betas'], (list, tuple)) else adam['betas']
    if not _is_number(adam['lr']) or not adam['lr'] > 0:
        raise ValueError(f'RepNASHook: alpha.lr must be a positive number, got {adam["lr"]!r}')
    if not _is_number(adam['weight_decay']) or adam['weight_decay'] < 0:
        raise ValueError(f'RepNASHook: alpha.weight_decay must be a number of at least 0, got {adam["weight_decay"]!r}')
    betas = adam['betas']
    if not isinstance(betas, tuple) or len(betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in betas):
        raise ValueError(f'RepNASHook: alpha.betas are two numbers from 0 to below 1, got {betas!r}')
    if isinstance(always, str):
        raise ValueError(f"RepNASHook: always takes a sequence of names; write always=('{always}', )")
    strange = [name for name in always if name not in BRANCHES]
    if strange:
        raise ValueError(f'RepNASHook: always names {strange[0]!r}; there are {list(BRANCHES)}')
    return adam


def check_search(runner: Runner, backbone: DyRepBackbone, border: int, by_epoch: bool) -> None:
    """Refuse runs in which branches can't be searched.

    Args:
        runner (Runner): Not yet trained.
        backbone (DyRepBackbone): Of its model.
        border (int): Epochs (or iterations) that warm-up and search take.
        by_epoch (bool): Which of them.

    Raises:
        ValueError: With what to change.
    """
    if any(kind.__name__ == 'DyRepHook' for hook in runner.hooks for kind in type(hook).__mro__):
        raise ValueError('RepNASHook and DyRepHook are two ways to find a structure; a run takes one of them. Remove '
                         'default_hooks.dyrep, or default_hooks.repnas')
    if not backbone._dyrep.static:
        raise ValueError('RepNASHook searches among branches that are there from the start: set static=True of '
                         "DyRepBackbone, with space='dyrep' for all seven of Table 1")
    if backbone.online:
        raise ValueError('RepNASHook does not work with DyRepBackbone(online=True): there blocks run as one '
                         'convolution with fixed statistics, of all their branches; set online=False')
    if runner.cfg.get('compile'):
        raise ValueError('RepNASHook does not work with compile: other branches run in each step, and each choice '
                         'would be compiled anew. Remove compile from the config')
    length = training_length(runner, by_epoch)
    if length is not None and border >= length:
        unit = 'epochs' if by_epoch else 'iterations'
        raise ValueError(f'RepNASHook: warm-up and search take {border} {unit}, the training has {length}; they must '
                         'end before it does, since the network that is found has still to be trained: set less '
                         'warmup or search')


def check_saved(saved: Any, settings: Dict[str, Any]) -> None:
    """Refuse to resume from what is not a run of this search.

    Args:
        saved (dict, optional): What the checkpoint holds of mmdyrep.
        settings (dict): Of the hook.

    Raises:
        ValueError: With what is different.
    """
    search = saved.get('repnas') if isinstance(saved, dict) else None
    if not isinstance(search, dict) or 'settings' not in search or 'architecture' not in search:
        raise ValueError('the checkpoint is not of a run with RepNASHook; a run goes on with the hook that it began '
                         'with. To search from its weights, use load_from instead of resume')
    check_history(saved['history'], "the checkpoint's history")
    for name, value in settings.items():
        before = search['settings'].get(name)
        if before != value and name != 'interval':
            raise ValueError(f'the checkpoint is of a run with {name}={before}, RepNASHook has {name}={value}. A '
                             f'search goes on only as it began: set {name}={before} to resume, or start a new run from '
                             'its weights with load_from')


def check_parallel(runner: Runner) -> None:
    """Refuse what does not go, in several processes, with parameters that have no gradient in some steps.

    Raises:
        ValueError: With what to change.
    """
    wrapper = runner.model
    if not isinstance(wrapper, DistributedDataParallel):
        return
    if wrapper.static_graph:
        raise ValueError('RepNASHook: DistributedDataParallel with static_graph=True does not work while other '
                         'branches run in each step; remove static_graph from model_wrapper_cfg')
    found = [name for name, module in wrapper.module.named_modules() if getattr(module, 'with_cp', False)]
    if found or runner.cfg.get('activation_checkpointing'):
        raise ValueError(f'RepNASHook: activation checkpointing ({found[0] if found else "activation_checkpointing"}) '
                         'does not work in several processes while other branches run in each step '
                         '(DistributedDataParallel with find_unused_parameters). Set with_cp=False, or train in one '
                         'process')
