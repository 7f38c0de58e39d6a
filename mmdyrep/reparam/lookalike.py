"""A copy of a network that can be run and changed without the network itself noticing."""
import copy
import functools
import types
from typing import Any, Dict, Iterable, Iterator, Tuple

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')


def lookalike(model: nn.Module, keep_hooks: bool = False) -> nn.Module:
    """Copy of a network that shares nothing with it which running or changing the copy could touch.

    Other than :func:`copy.deepcopy` it takes networks that hold tensors of a graph or things that can't be
    copied (locks, files; those are shared), binds functions set on instances to the copy, and leaves hooks
    behind, which would report to the owner of the network. Hooks of PyTorch itself (weight norm, pruning)
    stay, since they compute weights.

    Args:
        model (nn.Module): Left as it is.
        keep_hooks (bool): Keep all hooks, for a network that does not run without them. Defaults to False.

    Returns:
        nn.Module: The copy, on the same devices and in the same modes, of the class that the network had at first.
    """
    attributes = [(key, value) for module in model.modules() for key, value in vars(module).items()
                  if key not in ('_parameters', '_buffers', '_modules')]
    memo: Dict[int, Any] = {id(tensor): tensor.detach().clone() for _, value in attributes
                            for tensor in _tensors(value) if not tensor.is_leaf}
    for buffer in model.buffers():
        if isinstance(buffer, UninitializedBuffer):
            memo[id(buffer)] = UninitializedBuffer(  # type: ignore[call-arg]
                device=buffer.device, dtype=buffer.dtype)
    kept = []
    for key, value in attributes:
        if key in _HOOKS:
            # filled below: a hook may hold anything, a whole training
            memo[id(value)] = type(value)()
            kept.append((memo[id(value)], {number: hook for number, hook in value.items()
                                           if keep_hooks or _is_of_torch(hook)}))
    try:
        copied = copy.deepcopy(model, dict(memo))
    except Exception:  # any kind of object, any kind of refusal
        _share_uncopyable(attributes, memo)
        copied = copy.deepcopy(model, dict(memo))
    twins = {id(source): twin for source, twin in zip(model.modules(), copied.modules())}
    for module in copied.modules():
        for key, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType):
                vars(module)[key] = _bound_to(value, twins)
    for hooks, chosen in kept:
        hooks.update({number: _bound_to(hook, twins) for number, hook in chosen.items()})
    # a class that was extended to look after blocks would do so in the copy, too
    copied.__class__ = getattr(type(copied), '_inner_class', type(copied))
    return copied


def _is_of_torch(hook: Any) -> bool:
    return str(getattr(hook, '__module__', '')).startswith('torch.')


def _share_uncopyable(attributes: Iterable[Tuple[str, Any]], memo: Dict[int, Any]) -> None:
    """Note in the memo of deepcopy, as their own copies, the values that refuse to be copied."""
    for _, value in attributes:
        if id(value) in memo or isinstance(value, (nn.Module, Tensor, str, int, float, bool, type(None))):
            continue
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:  # as above
            memo[id(value)] = value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _bound_to(value: Any, twins: Dict[int, Any]) -> Any:
    """The same value with its modules replaced by their twins, as deep as functions and containers go."""
    if id(value) in twins:
        return twins[id(value)]
    if isinstance(value, types.MethodType) and id(value.__self__) in twins:
        return types.MethodType(value.__func__, twins[id(value.__self__)])
    if type(value) in (list, tuple, set):
        return type(value)(_bound_to(item, twins) for item in value)
    if type(value) is dict:
        return {key: _bound_to(item, twins) for key, item in value.items()}
    if isinstance(value, functools.partial):
        return functools.partial(_bound_to(value.func, twins), *_bound_to(value.args, twins),
                                 **_bound_to(value.keywords, twins))
    if isinstance(value, types.FunctionType) and (value.__closure__ or value.__defaults__ or value.__kwdefaults__):
        cells = tuple(types.CellType(_bound_to(cell.cell_contents, twins)) for cell in value.__closure__ or ())
        twin = types.FunctionType(value.__code__, value.__globals__, value.__name__,
                                  _bound_to(value.__defaults__, twins), cells or None)
        twin.__kwdefaults__ = _bound_to(value.__kwdefaults__, twins)
        twin.__dict__.update(value.__dict__)
        return twin
    return value


def has_hooks(module: nn.Module, *names: str) -> bool:
    """Whether somebody has registered hooks on a module, of any kind or of those named."""
    return any(getattr(module, name) for name in names or _HOOKS)
