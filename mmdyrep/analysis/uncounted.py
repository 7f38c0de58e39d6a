"""What a count of convolution and linear modules does not see."""
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

# functions that multiply and add by weights or maps; called by a counted module they are in the count
_WORK = {getattr(F, name): name for name in (
    'conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d', 'linear', 'bilinear',
    'multi_head_attention_forward', 'scaled_dot_product_attention')}
_WORK.update({torch.matmul: 'matmul', torch.Tensor.matmul: 'matmul', torch.Tensor.__matmul__: 'matmul',
              torch.bmm: 'bmm', torch.Tensor.bmm: 'bmm', torch.mm: 'mm', torch.Tensor.mm: 'mm',
              torch.einsum: 'einsum'})


class _Watch(TorchFunctionMode):

    def __init__(self) -> None:
        super().__init__()
        self.inside: List[Tuple[str, bool]] = []
        self.found: Dict[Tuple[str, str], int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None) -> Any:
        name, counted = self.inside[-1] if self.inside else ('', False)
        if func in _WORK and not counted:
            key = name, _WORK[func]
            self.found[key] = self.found.get(key, 0) + 1
        return func(*args, **(kwargs or {}))


def uncounted(model: nn.Module, run: Callable[[], Any], counted: Tuple[type, ...],
              prefix: str = '') -> List[str]:
    """What works in a forward pass without being a module of the counted kinds.

    Args:
        model (nn.Module): The network.
        run (callable): Runs its forward.
        counted (tuple): Kinds of modules that a count sees.
        prefix (str): Put in front of the names of modules. Defaults to none.

    Returns:
        list[str]: Functional calls with the module that makes them, weights of other kinds of modules, counted
        modules that were not called.
    """
    watch, hooks, called = _Watch(), [], set()

    def enter(name: str):
        def hook(module: nn.Module, args: Any) -> None:
            called.add(name)
            watch.inside.append((name, isinstance(module, counted)))
        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        watch.inside.pop()

    modules = dict(model.named_modules())
    for name, module in modules.items():
        hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        with watch:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    lines = [f'{times} x {function} in {prefix + name or type(model).__name__}' for (name, function), times
             in watch.found.items()]
    makers = {name for name, _ in watch.found}
    for name, module in modules.items():
        kernels = [value for value in module.parameters(recurse=False) if value.dim() > 2]
        if name in called and name not in makers and kernels and not isinstance(module, counted):
            lines.append(f'{type(module).__name__} {prefix}{name}')
        elif name not in called and isinstance(module, counted):
            lines.append(f'{prefix}{name}, which the forward does not call')
    return lines
