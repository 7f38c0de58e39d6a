"""An update happens as a whole or not at all."""
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.optim import OptimWrapper, _ParamScheduler
from torch import nn
from torch.optim import Optimizer

from mmdyrep.reparam.handing import HOOK_TABLES

Undo = Callable[[], None]


@contextmanager
def all_or_nothing(modules: Sequence[nn.Module], optim_wrapper: Optional[OptimWrapper] = None,
                   schedulers: Sequence[_ParamScheduler] = ()) -> Iterator[None]:
    """Put everything back as it was if the block ends with an error, which goes on.

    Modules, parameters and buffers are the very objects that they were, with their values, modes and order. Takes
    the memory of a second copy of the modules meanwhile.

    Args:
        modules (Sequence[nn.Module]): Whatever an update changes: backbones.
        optim_wrapper (OptimWrapper, optional): Its groups and its state by parameter; values of the state are not
            copied.
        schedulers (Sequence[_ParamScheduler]): Of the optimizer.
    """
    undo: List[Undo] = [_module_undo(module) for part in modules for module in part.modules()]
    undo += [_optimizer_undo(optim_wrapper.optimizer)] if optim_wrapper is not None else []
    undo += [_attributes_undo(scheduler) for scheduler in schedulers]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for call in undo:
                call()
        raise


def _module_undo(module: nn.Module) -> Undo:
    tables: List[Tuple[Any, Dict[str, Any]]] = [(table, dict(table)) for table in (
        module._modules, module._parameters, module._buffers)]
    own = [tensor for table in (module._parameters, module._buffers) for tensor in table.values() if tensor is not None]
    values = [(tensor, tensor.detach().clone()) for tensor in own]
    training = module.training
    hooks = {name: vars(module)[name] for name in HOOK_TABLES if name in vars(module)}

    def undo() -> None:
        vars(module).update(hooks)
        for table, content in tables:
            table.clear()
            table.update(content)
        for tensor, value in values:
            tensor.data.copy_(value)
        module.training = training

    return undo


def _optimizer_undo(optimizer: Optimizer) -> Undo:
    groups = [(group, dict(group), list(group['params'])) for group in optimizer.param_groups]
    state = dict(optimizer.state)

    def undo() -> None:
        for group, content, parameters in groups:
            group.clear()
            group.update(content, params=parameters)
        optimizer.param_groups[:] = [group for group, _, _ in groups]
        optimizer.state.clear()
        optimizer.state.update(state)

    return undo


def _attributes_undo(scheduler: _ParamScheduler) -> Undo:
    content: Dict[str, Any] = {key: list(value) if isinstance(value, list) else value
                               for key, value in vars(scheduler).items()}
    return lambda: vars(scheduler).update(content)
