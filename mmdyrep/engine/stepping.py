"""Every optimizer that really steps the backbone's parameters: its gradients are looked at, its groups follow."""
import weakref
from typing import Any, Callable, Iterator, List, Type, cast

from torch import nn
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .gradients import before_each_step

_KNOWN = ('param_groups', 'state', 'defaults')
# the wrapper around a class's step that calls the hooks
_HOOKED = Optimizer.profile_hook_step(lambda: None).__code__


def with_inner(optimizer: Optimizer) -> List[Optimizer]:
    """An optimizer and those that it holds (sharpness-aware minimization, Lookahead, sharding), the outermost first."""
    found = [optimizer]
    for outer in found:
        found += [inner for _, inner in _held(outer) if isinstance(inner, Optimizer)
                  and not any(inner is other for other in found)]
    return found


def check_optimizer(optimizer: Optimizer, backbone: nn.Module) -> None:
    """Refuse optimizers that would not see a change of the parameter groups.

    Raises:
        ValueError: With the optimizer, what it keeps for itself, and what to do.
    """
    mine = {id(parameter) for parameter in backbone.parameters()}
    for part in with_inner(optimizer):
        if part is not optimizer and not _shares(part, optimizer):
            raise ValueError(
                f'DyRepHook: {_name(optimizer)} steps an inner {_name(part)} with parameter groups of its own, which '
                'parameters that are added during training would not reach. Let the inner optimizer have the outer '
                'one\'s groups (inner.param_groups = outer.param_groups, in load_state_dict, too), or take the inner '
                'one alone: optim_wrapper.optimizer.type')
        kept = next((name for name, value in _held(part) if isinstance(value, Parameter) and id(value) in mine), None)
        if kept is not None or isinstance(part, LBFGS):
            raise ValueError(
                f'DyRepHook: {_name(part)} keeps parameters outside of its groups ({kept or "_params"}), so it would '
                'not follow a change of the structure. Take an optimizer that keeps state by parameter, as SGD, Adam '
                'and AdamW do: optim_wrapper.optimizer.type')


def _name(optimizer: Optimizer) -> str:
    return type(optimizer).__name__


def _held(optimizer: Optimizer) -> Iterator[tuple]:
    """Name and value of what an optimizer holds beside its groups and state, in containers as well."""
    for name, value in vars(optimizer).items():
        if name in _KNOWN or name.startswith('_optimizer_'):
            continue
        pending, depth = [value], 0
        while pending and depth < 4:
            for item in pending:
                yield name, item
            pending = [part for item in pending if isinstance(item, (list, tuple, set, dict)) for part in (
                [*item.keys(), *item.values()] if isinstance(item, dict) else item)]
            depth += 1


def _shares(inner: Optimizer, outer: Optimizer) -> bool:
    theirs = {id(group) for group in outer.param_groups}
    return all(id(group) in theirs for group in inner.param_groups)


def let_hooks_run(kind: Type[Optimizer] = Optimizer) -> None:
    """Give the classes of optimizers their step hooks back, which PyTorch takes away where anything is compiled.

    Its compiler unwraps the ``step`` of every class of ``torch.optim`` and marks it as wrapped for good.

    Args:
        kind (type): This class and those derived from it. Defaults to all optimizers.
    """
    step = vars(kind).get('step')
    if getattr(step, 'hooked', False) and getattr(step, '__code__', None) is not _HOOKED:
        owner: Any = kind
        owner.step = Optimizer.profile_hook_step(cast(Callable[..., Any], step))
        owner.step.hooked = True
    for derived in kind.__subclasses__():
        let_hooks_run(derived)


class Steppers:
    """Looks at the gradients in front of each real step, whoever takes it.

    Where an optimizer holds others, those step. An optimizer of somebody else's (a training step's own) is met at its
    first step: it is watched if it has the runner's parameter groups.

    Args:
        backbone (nn.Module): Whose parameters are meant.
        look (callable): Takes what the gradients are still multiplied by.
    """

    def __init__(self, backbone: nn.Module, look: Callable[[Any], None]) -> None:
        self._look = look
        self._backbone = weakref.ref(backbone)
        self._strangers: 'weakref.WeakSet[Optimizer]' = weakref.WeakSet()
        self._outer: Any = None
        self._all: List[Optimizer] = []
        self._handle = register_optimizer_step_pre_hook(self._meet)

    def bind(self, optimizer: Optimizer) -> None:
        """Watch an optimizer; nothing happens if it is watched already.

        Raises:
            ValueError: If it would not follow a change.
        """
        # something may have been compiled since the last iteration
        let_hooks_run()
        if optimizer is self._outer:
            return
        check_optimizer(optimizer, cast(nn.Module, self._backbone()))
        self._outer, self._all = optimizer, with_inner(optimizer)
        self._strangers.clear()
        for innermost in (part for part in self._all if len(with_inner(part)) == 1):
            before_each_step(innermost, self._look)

    def release(self) -> None:
        """The training is over."""
        self._handle.remove()

    def _meet(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer is about to step."""
        if any(optimizer is known for known in self._all) or optimizer in self._strangers:
            return
        backbone = self._backbone()
        if backbone is None or self._outer is None:
            return
        mine = {id(parameter) for parameter in backbone.parameters()}
        groups = [group for group in optimizer.param_groups
                  if any(id(parameter) in mine for parameter in group['params'])]
        if not groups:
            self._strangers.add(optimizer)
            return
        if not _shares(optimizer, self._outer):
            raise RuntimeError(
                f'DyRepHook: the training steps a {_name(optimizer)} that holds parameters of the backbone and is not '
                f'the {_name(self._outer)} of the optimizer wrapper. Parameters that are added during training would '
                'never be stepped. Step optim_wrapper.optimizer, or build the other one with its groups: '
                f'{_name(optimizer)}(optim_wrapper.optimizer.param_groups, ...)')
        self._all.append(optimizer)
        self._look(1.0)
        before_each_step(optimizer, self._look)

    def follow(self) -> None:
        """Let optimizers with the same group dicts, but a list of their own, have new groups, too."""
        for inner in self._all[1:]:
            if inner.param_groups is not self._outer.param_groups:
                inner.param_groups[:] = self._outer.param_groups
            known = {id(parameter) for group in inner.param_groups for parameter in group['params']}
            for parameter in [parameter for parameter in inner.state if id(parameter) not in known]:
                del inner.state[parameter]
