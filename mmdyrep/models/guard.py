"""No run trains with branches that its optimizer does not know."""
import weakref
from functools import wraps
from typing import Any, Callable, Dict, List, Set

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

# changed backbones, with the parameters that learned then: what is thawed later is up to the user
_changed: 'weakref.WeakKeyDictionary[nn.Module, Set[int]]' = weakref.WeakKeyDictionary()
_installed: List[Any] = []
_ADVICE = ('Add DyRepHook (default_hooks=dict(dyrep=dict(type="DyRepHook"))), with end=... if nothing shall grow any '
           'more, or give the structure when the model is built (DyRepBackbone(structure=...), or pretrained=<the '
           'augmented checkpoint>).')


def watch(backbone: nn.Module) -> None:
    """Check, before the next step of its optimizer, that this holds every trainable parameter of the backbone."""
    learning = {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}
    if not learning:
        return  # an averaged copy
    _changed[backbone] = learning
    if not _installed:
        _installed.append(register_optimizer_step_pre_hook(_check))
        Optimizer.load_state_dict = _explaining(Optimizer.load_state_dict)  # type: ignore[method-assign]


def _explaining(load: Callable) -> Callable:
    """``Optimizer.load_state_dict`` that says what to do where the model has got another structure since it was built.

    PyTorch has hooks for that of single optimizers only, and it is called before any step.
    """

    @wraps(load)
    def wrapper(self: Optimizer, state_dict: Dict[str, Any]) -> Any:
        try:
            return load(self, state_dict)
        except ValueError as error:
            known = {id(parameter) for group in self.param_groups for parameter in group['params']}
            if not any(id(parameter) in known for backbone in list(_changed) for parameter in backbone.parameters()):
                raise
            raise ValueError(f'{error}. The checkpoint is of a run with DyRep, whose structure the model has taken, '
                             f'while the optimizer was built for the one before. {_ADVICE}') from error

    return wrapper


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _changed:
        return
    known = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    for backbone, learning in list(_changed.items()):
        parameters = dict(backbone.named_parameters())
        if not any(id(parameter) in known for parameter in parameters.values()):
            continue  # another model's optimizer, or an averaged copy
        missing = [name for name, parameter in parameters.items()
                   if parameter.requires_grad and id(parameter) in learning - known]
        if missing:
            raise RuntimeError(
                f'{len(missing)} trainable parameters of the backbone are not in the optimizer, '
                f'{missing[0]} the first: the structure has changed after the optimizer was built. {_ADVICE}')
        _changed.pop(backbone, None)
