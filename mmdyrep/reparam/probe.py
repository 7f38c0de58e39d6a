"""Which batch norm follows which convolution, found by watching one forward pass."""
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


@dataclass
class Use:
    """What the probe saw of one convolution."""

    calls: int = 0
    consumers: List[Optional[str]] = field(default_factory=list)  # names of batch norms, None for all else

    def follower(self) -> Optional[str]:
        """Name of the batch norm that alone reads the one output, if it is so."""
        return self.consumers[0] if self.calls == 1 and len(set(self.consumers)) == 1 else None


@dataclass
class Flow:
    """What the probe saw of a network: uses of its convolutions, inputs read by its batch norms."""

    convs: Dict[str, Use]
    norm_calls: Dict[str, int]


class _Watch(TorchFunctionMode):
    """Notes each function that makes a tensor out of the output of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: Dict[int, Tuple[Tensor, Use]] = {}
        self.norms: List[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # reading a shape or a device is no use; setting values is, though it returns nothing
        if func is Tensor.__setitem__ or any(True for _ in _tensors(result)):
            for tensor in _tensors((args, kwargs or {})):
                self.note(tensor)
        return result

    def note(self, tensor: Tensor) -> None:
        known = self.outputs.get(id(tensor))
        if known is not None and known[0] is tensor:
            known[1].consumers.append(self.norms[-1] if self.norms else None)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


@torch.no_grad()
def probe(model: nn.Module, x: Tensor) -> Flow:
    """Run ``model(x)`` in eval mode and record what reads the output of each convolution.

    Functional uses are watched as well as modules. The modes of all modules, the buffers and the random
    state are as before afterwards, also when the forward fails.

    Args:
        model (nn.Module): Network without blocks.
        x (Tensor): Its input, shape (N, C, H, W).

    Returns:
        Flow: Uses of all convolutions and batch norms.
    """
    watch = _Watch()
    flow = Flow({}, {})
    hooks, modes = [], [(module, module.training) for module in model.modules()]

    def produce(name: str):
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            use = flow.convs[name]
            use.calls += 1
            watch.outputs[id(output)] = output, use
        return hook

    def enter(name: str):
        def hook(module: nn.Module, inputs: Tuple[Tensor, ...]) -> None:
            flow.norm_calls[name] += 1
            watch.norms.append(name)
        return hook

    def leave(module: nn.Module, inputs: Any, output: Tensor) -> None:
        watch.norms.pop()

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            flow.convs[name] = Use()
            hooks.append(module.register_forward_hook(produce(name)))
        elif isinstance(module, _BatchNorm):
            flow.norm_calls[name] = 0
            hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]), watch:
            output = model(x)
        for tensor in _tensors(output):
            watch.note(tensor)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return flow
