"""An optimizer brought along when the parameters of its model change."""
import copy
import logging
from contextlib import contextmanager
from typing import Any, Callable, Collection, Dict, Iterable, Iterator, List, Optional, Tuple

from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, _ParamScheduler, build_optim_wrapper
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from mmdyrep.models.finding import find_backbone
from mmdyrep.reparam import fold_all

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


def rebuild_groups(optim_wrapper: OptimWrapper, model: nn.Module, cfg: Optional[Dict[str, Any]],
                   before: Optional[Collection[Parameter]] = None) -> List[str]:
    """Let the parameter groups follow a change of the model; the dicts of the groups and their places stay.

    A surviving parameter stays in its group, with its state (momentum). A new one joins the group of the nearest
    survivor that the config's constructor gives the same options, and so has that one's current values (schedules go
    on). Only where there is no such group, one is added behind the others. A parameter that is gone leaves its group,
    which may end up empty. Within a group parameters stand in the constructor's order.

    Args:
        optim_wrapper (OptimWrapper): Changed in place.
        model (nn.Module): With its new parameters.
        cfg (dict, optional): Of the optim wrapper. Without it there must be one group, which takes all.
        before (Collection[Parameter], optional): What the model had; parameters of the optimizer that are neither
            among them nor in the model are somebody else's and stay. Defaults to none of these.

    Returns:
        list[str]: What is worth a line in the log.

    Raises:
        ValueError: If there are several groups and no config, or no parameter has survived; nothing has been changed.
    """
    optimizer = optim_wrapper.optimizer
    groups = optimizer.param_groups
    fresh = fresh_groups(optimizer, model, cfg)
    present = set(model.parameters())
    owner = {parameter: group for group in groups for parameter in group['params']}
    gone = {parameter for parameter in owner if parameter not in present and (before is None or parameter in before)}
    homes = _Homes(model, fresh, owner, lambda: _plain_kinds(optimizer, model, cfg))
    joining = [(parameter, group) for group in fresh for parameter in group['params'] if parameter not in owner]
    # chosen before any group is touched: it may fail
    chosen = [(parameter, homes.of(parameter, group)) for parameter, group in joining]
    lists = {id(group): [parameter for parameter in group['params'] if parameter not in gone]
             for group in [*groups, *homes.added]}
    for parameter, group in chosen:
        lists[id(group)].append(parameter)
    groups += homes.added
    for group in groups:
        group['params'] = sorted(lists[id(group)], key=lambda item: homes.places.get(item, len(homes.places)))
    for parameter in [parameter for parameter in optimizer.state if parameter in gone]:
        del optimizer.state[parameter]
    strays = [parameter for parameter, _ in joining if before is not None and parameter in before]
    return _notes(homes, strays)


def _notes(homes: '_Homes', strays: List[Parameter]) -> List[str]:
    lines = []
    if homes.added:
        lines.append(f'the optimizer has {len(homes.added)} parameter groups more, behind the others: the config gives '
                     f'new parameters ({homes.names[homes.added_for[0]]}, ...) options that no group has. Hooks that '
                     'note one value for each group at the start do not know them')
    if strays:
        lines.append(f'{len(strays)} parameters ({homes.names[strays[0]]}, ...) were not in the optimizer, frozen when '
                     'it was built; they are stepped from now on')
    return lines


class _Homes:
    """Finds the group that a new parameter joins."""

    def __init__(self, model: nn.Module, fresh: List[Group], owner: Dict[Parameter, Group],
                 plain_kinds: Callable[[], Dict[str, Group]]) -> None:
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        listed = [parameter for group in fresh for parameter in group['params']]
        self.places = {parameter: place for place, parameter in enumerate(listed)}
        survivors = [(parameter, group, owner[parameter]) for group in fresh for parameter in group['params']
                     if parameter in owner]
        if not survivors:
            raise ValueError('no parameter of the optimizer has survived; it belongs to another model')
        moved = {parameter for parameter, name in self.names.items() if '.branches.' in name}
        usual = [_kind(group) for parameter, group, _ in survivors if parameter not in moved]
        doubtful = {item[0] for item in survivors if item[0] in moved and _kind(item[1]) not in usual}
        plain = plain_kinds() if doubtful else {}
        # where the config has other options for a parameter's new name, its group does not tell what they come to
        self._survivors = [item for item in survivors if item[0] not in doubtful or plain.get(
            _plain_name(self.names[item[0]])) in (None, _kind(item[1]))] or survivors
        self.added: List[Group] = []
        self.added_for: List[Parameter] = []

    def of(self, parameter: Parameter, group: Group) -> Group:
        """The group for a parameter that the constructor puts into ``group``."""
        like = [item for item in self._survivors if item[1] is group] or [
            item for item in self._survivors if _kind(item[1]) == _kind(group)]
        if like:
            return min(like, key=lambda item: self._distance(parameter, item[0]))[2]
        made = {**_options(group), **_scaled(group, *self._survivors[0][1:]), 'params': []}
        self.added.append(made)
        self.added_for.append(parameter)
        self._survivors.append((parameter, group, made))
        return made

    def _distance(self, one: Parameter, other: Parameter) -> Tuple[int, int]:
        """The less, the nearer: by common parts of the name, then by place."""
        names = self.names.get(one, '').split('.'), self.names.get(other, '').split('.')
        common = next((i for i, pair in enumerate(zip(*names)) if pair[0] != pair[1]), min(map(len, names)))
        return -common, abs(self.places[one] - self.places[other])


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
    check_groups(optimizer, cfg)
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != 'params'}
    return [{**group, 'params': list(model.parameters())}]


def check_groups(optimizer: Optimizer, cfg: Optional[Dict[str, Any]]) -> None:
    """Refuse several groups that no config tells how to build.

    Raises:
        ValueError: With what to do.
    """
    if not cfg and len(optimizer.param_groups) > 1:
        raise ValueError(f'the optimizer has {len(optimizer.param_groups)} parameter groups and the runner knows no '
                         'config of it, so the options of new parameters are unknown; build the runner with '
                         'Runner.from_cfg, or with one group')


def _options(group: Group) -> Dict[str, Any]:
    return {key: value for key, value in group.items() if key != 'params'}


def _plain_kinds(optimizer: Optimizer, model: nn.Module, cfg: Optional[Dict[str, Any]]) -> Dict[str, Group]:
    """What the config gives the parameters of the plain network, by name."""
    plain = copy.deepcopy(model)
    backbone = find_backbone(plain)[1]
    fold_all(backbone, backbone.survey.ops)
    names = {parameter: name for name, parameter in plain.named_parameters()}
    return {names[parameter]: _kind(group) for group in fresh_groups(optimizer, plain, cfg)
            for parameter in group['params']}


def _plain_name(name: str) -> str:
    return f"{name.split('.branches.')[0]}.{name.rpartition('.')[2]}"


def _kind(group: Group) -> Dict[str, Any]:
    """Options but for names: param_name, group_name and the like tell about one group."""
    return {key: value for key, value in _options(group).items() if 'name' not in key}


def _scaled(group: Group, start: Group, now: Group) -> Group:
    """Options of a group that has no like: what schedules made of another group's, in proportion."""
    values = _options(group)
    for key, value in _options(now).items():
        origin = key[len('initial_'):] if key.startswith('initial_') else {'max_lr': 'lr', 'min_lr': 'lr'}.get(key, key)
        if 'name' in key:
            continue
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
