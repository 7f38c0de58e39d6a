"""Which parameter stands where in an optimizer's groups: kept in checkpoints, taken up again by a resumed run."""
from typing import Any, Dict, List, Optional

from torch import nn
from torch.optim import Optimizer

from .optimizer import fresh_groups

# by group, names of its parameters; an empty one is a parameter that the model does not have
Layout = List[List[str]]


def layout(optimizer: Optimizer, model: nn.Module) -> Layout:
    """Names of the parameters of each group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names.get(parameter, '') for parameter in group['params']] for group in optimizer.param_groups]


def arrange(optimizer: Optimizer, model: nn.Module, wanted: Layout) -> None:
    """Put the parameters where a layout has them; options and state are loaded afterwards.

    Raises:
        ValueError: If the layout has parameters that are not there; nothing has been changed.
    """
    known = dict(model.named_parameters())
    mine = set(known.values())
    others = iter([item for group in optimizer.param_groups for item in group['params'] if item not in mine])
    missing = [name for names in wanted for name in names if name and name not in known]
    if missing:
        raise ValueError(f'the checkpoint\'s optimizer has {missing[0]}, which the model does not have')
    lists = [[known[name] if name else next(others, None) for name in names] for names in wanted]
    groups = optimizer.param_groups
    like = {key: value for key, value in groups[0].items() if key != 'params'}
    del groups[len(lists):]
    groups += [dict(like, params=[]) for _ in range(len(lists) - len(groups))]
    for group, parameters in zip(groups, lists):
        group['params'] = [parameter for parameter in parameters if parameter is not None]


def layout_of(checkpoint: Dict[str, Any], optimizer: Optimizer, model: nn.Module,
              cfg: Optional[Dict[str, Any]]) -> Optional[Layout]:
    """The layout that a checkpoint's optimizer state has; None if it is the present one.

    Checkpoints of earlier versions do not tell theirs: it was that of a fresh construction.
    """
    saved = checkpoint.get('dyrep', {}).get('groups')
    state = checkpoint.get('optimizer')
    if saved is not None or not isinstance(state, dict) or 'param_groups' not in state:
        return saved
    sizes = [len(group['params']) for group in state['param_groups']]
    if sizes == [len(group['params']) for group in optimizer.param_groups]:
        return None
    names = {parameter: name for name, parameter in model.named_parameters()}
    fresh = [[names[parameter] for parameter in group['params']] for group in fresh_groups(optimizer, model, cfg)]
    return fresh if sizes == [len(group) for group in fresh] else None
