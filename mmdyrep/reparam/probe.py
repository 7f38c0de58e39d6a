"""Which batch norm follows which convolution, found by watching forward passes of a copy of the network."""
import types
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Set, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from .lookalike import has_hooks, lookalike
from .random_state import random_state_kept


@dataclass
class Use:
    """What the probe saw of one convolution."""

    calls: int = 0  # the most in one forward pass
    consumers: List[Optional[str]] = field(default_factory=list)  # names of batch norms, None for all else

    def follower(self) -> Optional[str]:
        """Name of the batch norm that alone reads the one output, if it is so."""
        return self.consumers[0] if self.calls == 1 and len(set(self.consumers)) == 1 else None


@dataclass
class Flow:
    """What the probe saw of a network: uses of its convolutions, inputs read by its batch norms in one pass."""

    convs: Dict[str, Use]
    norm_calls: Dict[str, int]
    needs_hooks: bool = False  # it does not run without the hooks that somebody has registered

    def join(self, other: 'Flow') -> None:
        """Add what another pass, by another route, has shown; a convolution that was not reached here stays so."""
        for name, use in self.convs.items():
            seen = other.convs.get(name, Use())
            if use.calls:
                use.calls = max(use.calls, seen.calls)
                use.consumers += seen.consumers
        for name, calls in other.norm_calls.items():
            self.norm_calls[name] = max(self.norm_calls.get(name, 0), calls)


class _Watch(TorchFunctionMode):
    """Notes each function that makes a tensor out of the output of a convolution."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: Dict[int, Tuple[Tensor, int, Use]] = {}
        self.norms: List[str] = []

    def __torch_function__(self, func: Any, kinds: Any, args: Tuple[Any, ...] = (),
                           kwargs: Optional[Dict[str, Any]] = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # reading a shape or a device is no use; setting values is, though it returns nothing
        if func is Tensor.__setitem__ or any(True for _ in tensors_in(result)):
            for tensor in tensors_in((args, kwargs or {})):
                self.note(tensor)
        return result

    def note(self, tensor: Tensor) -> None:
        known = self.outputs.get(id(tensor))
        if known is not None and known[0] is tensor:
            known[2].consumers.append(self.norms[-1] if self.norms else None)

    def enter(self, norm: str, inputs: Any) -> None:
        """A batch norm begins; an output that was changed in place before, by compiled code, has another reader."""
        for tensor in tensors_in(inputs):
            known = self.outputs.get(id(tensor))
            if known is not None and known[0] is tensor and _version(tensor) != known[1]:
                known[2].consumers.append(None)
        self.norms.append(norm)


def _version(tensor: Tensor) -> int:
    """How often a tensor has been changed in place; tensors of inference mode don't tell."""
    return -1 if tensor.is_inference() else tensor._version


def tensors_in(value: Any, _seen: Optional[Set[int]] = None) -> Iterator[Tensor]:
    """All tensors in a nest of lists, tuples, dicts and objects, modules left out."""
    seen = set() if _seen is None else _seen
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen and not isinstance(value, (nn.Module, type, types.ModuleType)):
        seen.add(id(value))
        inner: Iterable[Any]
        if isinstance(value, (list, tuple, set)):
            inner = value
        elif isinstance(value, Mapping):
            inner = value.values()
        else:
            # of classes of the user's, as outputs are; others hold whatever they like
            inner = vars(value).values() if hasattr(value, '__dict__') and not callable(value) else ()
        for item in list(inner):
            yield from tensors_in(item, seen)


def probe(model: nn.Module, *args: Any, **kwargs: Any) -> Flow:
    """Run ``model(*args, **kwargs)`` on copies and record what reads the output of each convolution.

    Functional uses are watched as well as modules. Beside a pass in eval mode two in train mode are watched,
    if the network runs without labels, since it may take other routes there. The network itself, its hooks
    and the random state are left alone, also when the forward fails.

    Args:
        model (nn.Module): Network without blocks.
        *args: Its inputs, as of shape (N, C, H, W).
        **kwargs: Inputs by keyword.

    Returns:
        Flow: Uses of all convolutions and batch norms.
    """
    with random_state_kept():
        try:
            flow = _watched(lookalike(model).eval, args, kwargs)
        except Exception:
            if not any(has_hooks(module) for module in model.modules()):
                raise
            flow = _watched(lookalike(model, keep_hooks=True).eval, args, kwargs)
            flow.needs_hooks = True
        for _ in range(2):
            state = torch.random.get_rng_state()
            try:
                flow.join(_watched(lookalike(model, flow.needs_hooks).train, doubled(args), doubled(kwargs)))
            except Exception:  # wants labels, or fails in any other way: evaluation has to do
                break
            if torch.equal(torch.random.get_rng_state(), state):
                break  # nothing is random, nor would another pass be different
    return flow


def doubled(value: Any) -> Any:
    """The same nest with tensors of one image repeated: norms over a map of one pixel need two in train mode."""
    if isinstance(value, Tensor):
        return torch.cat([value, value]) if value.dim() and len(value) == 1 else value
    if isinstance(value, dict):
        return {key: doubled(item) for key, item in value.items()}
    return type(value)(doubled(item) for item in value) if type(value) in (list, tuple) else value


@torch.no_grad()
def _watched(prepare: Callable[[], Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Flow:
    """One pass through the copy that the bound method ``prepare``, train or eval, belongs to."""
    model: nn.Module = prepare.__self__  # type: ignore[attr-defined]
    prepare()
    watch = _Watch()
    flow = Flow({}, {})

    def produce(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            use = flow.convs[name]
            use.calls += 1
            watch.outputs[id(output)] = output, _version(output), use
        return hook

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, keywords: Any) -> None:
            flow.norm_calls[name] += 1
            watch.enter(name, (inputs, keywords))
        return hook

    def leave(module: nn.Module, inputs: Any, output: Tensor) -> None:
        watch.norms.pop()

    for name, module in model.named_modules():
        if type(module) is nn.SyncBatchNorm:
            # other processes have nothing to do with it, nor has a GPU
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        if isinstance(module, nn.Conv2d):
            flow.convs[name] = Use()
            module.register_forward_hook(produce(name))
        elif isinstance(module, _BatchNorm):
            flow.norm_calls[name] = 0
            module.register_forward_pre_hook(enter(name), with_kwargs=True)
            module.register_forward_hook(leave)
    with watch:
        output = model(*args, **kwargs)
    # what is kept in an attribute may be read later, by a loss
    kept = [value for module in model.modules() for key, value in vars(module).items()
            if key not in ('_parameters', '_buffers', '_modules')]
    for tensor in tensors_in([output, kept]):
        watch.note(tensor)
    return flow
