"""An optimizer brought along when the parameters of its model change."""
import copy
import logging
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Optional

from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, _ParamScheduler, build_optim_wrapper
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

Group = Dict[str, Any]


@contextmanager
def _silenced() -> Iterator[None]:
    """mmengine's constructors log every option of every parameter, each time."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def rebuild_groups(optim_wrapper: OptimWrapper, model: nn.Module, cfg: Optional[Dict[str, Any]]) -> None:
    """Make the parameter groups what a fresh construction would make them, values carried on.

    The optimizer object stays. State (momentum) of surviving parameters is kept, that of parameters that
    are gone is dropped, new ones start without. A surviving parameter keeps the current options of its
    group; a new one gets those of a survivor that the constructor gives the same options, so that
    schedules go on.

    Args:
        optim_wrapper (OptimWrapper): Changed in place.
        model (nn.Module): With its new parameters.
        cfg (dict, optional): Of the optim wrapper. Without it there must be one group, which takes all.

    Raises:
        ValueError: If there are several groups and no config; nothing has been changed.
    """
    optimizer = optim_wrapper.optimizer
    old = {parameter: group for group in optimizer.param_groups for parameter in group['params']}
    groups = regrouped(fresh_groups(optimizer, model, cfg), old)
    kept = {parameter for group in groups for parameter in group['params']}
    optimizer.param_groups[:] = groups
    for parameter in [parameter for parameter in optimizer.state if parameter not in kept]:
        del optimizer.state[parameter]


def lacks_parameters(optimizer: Optimizer, part: nn.Module) -> bool:
    """Whether a trainable parameter of a part of the model is in no group."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    return any(parameter.requires_grad and id(parameter) not in known for parameter in part.parameters())


def fresh_groups(optimizer: Optimizer, model: nn.Module, cfg: Optional[Dict[str, Any]]) -> List[Group]:
    """Groups as the config's own constructor builds them for the model as it is now."""
    if cfg:
        with _silenced():
            fresh = build_optim_wrapper(model, copy.deepcopy(dict(cfg)))
        return fresh.optimizer.param_groups
    if len(optimizer.param_groups) > 1:
        raise ValueError(f'the optimizer has {len(optimizer.param_groups)} parameter groups and the runner knows no '
                         'config of it, so the options of new parameters are unknown; build the runner with '
                         'Runner.from_cfg, or with one group')
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != 'params'}
    return [{**group, 'params': list(model.parameters())}]


def regrouped(fresh: List[Group], old: Dict[Parameter, Group]) -> List[Group]:
    """Fresh groups with the current values of the old ones.

    Args:
        fresh (list[dict]): Groups as just constructed.
        old (dict): Group of each parameter that the optimizer had.
    """
    # (options at construction, options now) of every surviving parameter's group
    history = [(group, old[parameter]) for group in fresh for parameter in group['params'] if parameter in old]
    if not history:
        raise ValueError('no parameter of the optimizer has survived; it belongs to another model')
    result = []
    for group in fresh:
        now = next((old[parameter] for parameter in group['params'] if parameter in old), None)
        if now is None:
            now = next((current for start, current in history if _options(start) == _options(group)), None)
        values = _options(now) if now is not None else _scaled(group, *history[0])
        # schedules change numbers; a text, as the name of a parameter, tells about this group
        texts = {key: value for key, value in _options(group).items() if isinstance(value, str)}
        result.append({**_options(group), **values, **texts, 'params': group['params']})
    return result


def _options(group: Group) -> Dict[str, Any]:
    return {key: value for key, value in group.items() if key != 'params'}


def _scaled(group: Group, start: Group, now: Group) -> Group:
    """Options of a group that has no like: what schedules made of another group's, in proportion."""
    values = _options(group)
    for key, value in _options(now).items():
        origin = key[len('initial_'):] if key.startswith('initial_') else {'max_lr': 'lr', 'min_lr': 'lr'}.get(key, key)
        if origin in start and start[origin] == group.get(origin):
            values[key] = value
        elif origin in start and _number(value) and _number(start[origin]) and start[origin]:
            values[key] = group[origin] * value / start[origin]
        else:
            values.setdefault(key, value)
    return values


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def refresh_schedulers(schedulers: Iterable[_ParamScheduler]) -> None:
    """Give the schedulers a base value for each group that there is now; the steps that they count stay."""
    for scheduler in schedulers:
        name = scheduler.param_name
        groups = scheduler.optimizer.param_groups
        if hasattr(scheduler, 'base_values'):
            scheduler.base_values = [group[f'initial_{name}'] for group in groups]
        minima = getattr(scheduler, 'min_values', None)  # of ReduceOnPlateau
        if minima is not None and len(minima) != len(groups):
            if len(set(minima)) > 1:
                raise ValueError(f'{type(scheduler).__name__} has a min_value for each of {len(minima)} groups, but '
                                 f'there are {len(groups)} now; give one min_value')
            scheduler.min_values = minima[:1] * len(groups)
        scheduler._last_value = [group[name] for group in groups]


def scheduler_list(schedulers: Any) -> List[_ParamScheduler]:
    """Schedulers of a runner, whether it keeps a list or a dict of lists."""
    if isinstance(schedulers, dict):
        return [scheduler for part in schedulers.values() for scheduler in part]
    return list(schedulers or [])
