"""Multiply-adds of convolutions and linear layers, one counted once."""
from typing import Any, Callable, Dict, List, Sequence, Tuple, cast

import torch
from torch import Tensor, nn

from mmdyrep.reparam import BRANCHES, Block, Geometry, merging
from mmdyrep.reparam.untouched import untouched


class Count:
    """MACs by module name, and the size of each convolution's or block's input."""

    def __init__(self) -> None:
        self.by_name: Dict[str, int] = {}
        self.inputs: Dict[str, Tuple[int, ...]] = {}

    @property
    def total(self) -> int:
        return sum(self.by_name.values())


def count(model: nn.Module, *inputs: Any, **kwargs: Any) -> Count:
    """Count the MACs of ``model(*inputs, **kwargs)`` in eval mode; the model is left as it was.

    Modules called several times count each time. Functional convolutions (fixed averages) don't count.
    """
    result, hooks = Count(), []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Tuple[Tensor, ...], kwargs: Dict[str, Tensor], output: Tensor) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            result.inputs[name] = tuple(x.shape)
            if isinstance(module, nn.Linear):
                result.by_name[name] = result.by_name.get(name, 0) + output.numel() * module.in_features
            elif not isinstance(module, Block):
                points = x if isinstance(module, nn.ConvTranspose2d) else output
                per_point = cast(Tensor, module.weight)[0].numel()
                result.by_name[name] = result.by_name.get(name, 0) + points.numel() * per_point
        return hook

    counted = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, Block)
    for name, module in model.named_modules():
        if isinstance(module, counted):
            hooks.append(module.register_forward_hook(look(name), with_kwargs=True))
    try:
        with torch.no_grad(), untouched(model):
            model.eval()
            model(*inputs, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return result


def executed(model: nn.Module, *inputs: Any, **kwargs: Any) -> int:
    """MACs of a forward in the modes that the modules are in, where blocks of fixed statistics are one convolution."""
    merged = {f'{name}.': block for name, block in model.named_modules()
              if isinstance(block, Block) and not merging.why_branchwise(block)}
    counted = count(model, *inputs, **kwargs)
    total = sum(value for name, value in counted.by_name.items() if not name.startswith(tuple(merged)))
    for name, block in merged.items():
        if not name[:-1].startswith(tuple(merged)):
            height, width = block.geometry.output_size(counted.inputs[name[:-1]][2:])
            total += height * width * block.original_conv().weight.numel()
    return total


def of_branches(names: List[str], geometry: Geometry, size: Sequence[int]) -> int:
    """MACs that branches beside an op would add for one image.

    Args:
        names (list[str]): Branches.
        geometry (Geometry): Of the op.
        size (Sequence[int]): Height and width of its input.
    """
    total = 0
    with torch.device('meta'):
        x = torch.empty(1, geometry.in_channels, *size)
        for name in names:
            total += count(BRANCHES[name](geometry, nn.BatchNorm2d), x).total
    return total


def parameters(model: nn.Module) -> int:
    """Number of learnable values."""
    return sum(parameter.numel() for parameter in model.parameters())
