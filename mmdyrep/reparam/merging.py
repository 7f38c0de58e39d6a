"""A block that is linear, since all its norms work with running statistics, runs as one convolution."""
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Optional, Tuple, Type, TypeVar, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as modules
from torch.nn.modules.batchnorm import _BatchNorm

from . import branches, constant, merged
from .autocast import autocast_dtype, without_autocast
from .geometry import Geometry
from .kernels import Kernel
from .merged import Conv, Norm, Part, Parts

if TYPE_CHECKING:
    from .block import Block

# Subclasses of nn.Conv2d whose forward is the plain convolution on every non-empty input.
PLAIN_CONVS = ('mmcv.cnn.bricks.wrappers.Conv2d',)
# What a block of these computes is known here; others run as they are written.
KNOWN = dict(zip(('kxk', '1x1', '1x1_kxk', '1x1_avg', '1xk', 'kx1', 'residual'), (
    branches.KxK, branches.OneByOne, branches.OneByOneKxK, branches.OneByOneAvg, branches.OneByK, branches.KByOne,
    branches.Residual)))
Tree = TypeVar('Tree')
_HALVES = (torch.float16, torch.bfloat16)

# compilers know the function and take it for true
_asked: Any = getattr(getattr(torch, 'compiler', None), 'is_compiling', None)
compiling: Callable[[], bool] = _asked or getattr(torch._utils, 'is_compiling', lambda: False)


# ---------------------------------------------------------------------- may it?

def why_called(module: nn.Module) -> str:
    """Why a module has to be called itself; empty if nobody would notice."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return 'a module in it has a hook'
    # compilers can't look into `__dict__`
    if not compiling() and ('forward' in module.__dict__ or '_conv_forward' in module.__dict__):
        return 'the forward of a module in it has been replaced'
    return ''


def why_own(name: str, branch: nn.Module) -> str:
    """Why a branch has to be called itself; empty if it is one of Table 1 and nobody would notice."""
    return why_called(branch) if type(branch) is KNOWN.get(name) else f'{name} is no branch of Table 1'


def hooks_for_all() -> bool:
    """Whether somebody has registered hooks for all modules there are."""
    return bool(modules._global_forward_hooks or modules._global_forward_pre_hooks or modules._global_backward_hooks
                or modules._global_backward_pre_hooks)


def is_plain_conv(kind: Type[nn.Conv2d]) -> bool:
    """Whether the forward of a subclass of nn.Conv2d is that of nn.Conv2d."""
    return (kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
            or f'{kind.__module__}.{kind.__qualname__}' in PLAIN_CONVS)


def _why_conv(module: Optional[nn.Module]) -> str:
    if module is None:
        return ''
    if hasattr(module, 'branches'):
        return why_called(module) or why_branchwise(module)  # type: ignore[arg-type]
    if not isinstance(module, nn.Conv2d) or not is_plain_conv(type(module)):
        return f'{type(module).__name__} is more than a plain convolution'
    if not compiling() and module._parameters.get('weight') is None:
        return 'the weight of a convolution in it is computed from others'
    return why_called(module)


def _why_norm(module: Optional[nn.Module]) -> str:
    if module is None:
        return ''
    if isinstance(module, nn.Identity):  # the norm has been fused into the convolution before it
        return why_called(module)
    kind = type(module)
    if not isinstance(module, _BatchNorm) or kind.forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        return f'{kind.__name__} is more than a batch norm'
    if module.training:
        return 'a norm in it works with statistics of the batch'
    if module.weight is None or module.bias is None or module.running_mean is None or module.running_var is None:
        return 'a norm in it is not affine or keeps no statistics'
    return why_called(module)


def why_branchwise(block: 'Block') -> str:
    """Why a block has to run branch by branch; empty if it may run as one convolution.

    It may if each of its norms works in eval mode, and nobody could notice that the modules in it are not called:
    they are what a block makes, without hooks, and their forward is their class's own.
    """
    if block.gate is not None:
        return 'a search decides which of its branches run'
    if hooks_for_all():
        return 'there are hooks for all modules'
    for name, branch in block.branches.items():
        why = (why_own(name, branch) or _why_norm(branch.bn) or _why_conv(getattr(branch, 'conv', None))
               or _why_norm(getattr(branch, 'bn1', None)) or _why_conv(getattr(branch, 'conv1', None)))
        if why:
            return why
    return ''


# ---------------------------------------------------------------------- its numbers

def _conv(module: Union[nn.Conv2d, 'Block', None]) -> Any:
    if module is None:
        return None
    return Conv(module.weight, module.bias) if isinstance(module, nn.Conv2d) else parts_of(module)


def _norm(module: Optional[_BatchNorm]) -> Optional[Norm]:
    if module is None or isinstance(module, nn.Identity):
        return None
    return Norm(module.weight, module.bias, module.running_mean, module.running_var,  # type: ignore[arg-type]
                module.eps)


def parts_of(block: 'Block') -> Parts:
    """Numbers of a block and of those nested in it: its very parameters and buffers.

    Args:
        block (Block): One that may run as one convolution.
    """
    found = []
    for name, branch in block.branches.items():
        found.append(Part(name, _conv(getattr(branch, 'conv1', None)), _norm(getattr(branch, 'bn1', None)),
                          _conv(getattr(branch, 'conv', None)), _norm(branch.bn)))
    return Parts(block.geometry, block.scale, tuple(found))


def _wide(parts: Parts) -> Parts:
    """The same numbers in single precision at least."""
    tensors = merged.tensors_of(parts)
    if not any(tensor.dtype in _HALVES for tensor in tensors):
        return parts
    numbers: Parts = merged.with_tensors(parts, iter([tensor.float() if tensor.dtype in _HALVES else tensor
                                                      for tensor in tensors]))
    return numbers


def merge(parts: Parts, dtype: torch.dtype) -> Kernel:
    """Equivalent kernel (Eq. 2), differentiable; computed in the parameters' precision, under autocast, too.

    Args:
        parts (Parts): Of :func:`parts_of`.
        dtype (torch.dtype): Of the result.
    """
    with without_autocast():
        kernel = merged.kernel(_wide(parts))
        return Kernel(kernel.weight.to(dtype), kernel.bias.to(dtype))


# ---------------------------------------------------------------------- the convolution

def convolve(x: Tensor, kernel: Kernel, geometry: Geometry) -> Tensor:
    """Convolution of a map (N, C_in, H, W) with a kernel of this geometry."""
    return F.conv2d(x, kernel.weight, kernel.bias, geometry.stride, geometry.padding, geometry.dilation,
                    geometry.groups)


class _Convolution(torch.autograd.Function):
    """Convolution with the equivalent kernel of a block; keeps the input and the block's own tensors alone.

    The kernel is computed again for the gradients: it and what it is made of take no memory meanwhile.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: Parts, dtype: torch.dtype, *tensors: Tensor) -> Tensor:
        ctx.form, ctx.dtype = form, dtype
        ctx.save_for_backward(x, *tensors)
        with without_autocast():
            return convolve(x, merge(merged.with_tensors(form, iter(tensors)), dtype), form.geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        x, *tensors = ctx.saved_tensors
        parts, geometry = merged.with_tensors(ctx.form, iter(tensors)), ctx.form.geometry
        needs_x, _, _, *needs = ctx.needs_input_grad
        with without_autocast():
            kernel = merge(parts, ctx.dtype)
            by_x, by_weight, by_bias = torch.ops.aten.convolution_backward(
                gradient, x, kernel.weight, [geometry.out_channels], geometry.stride, geometry.padding,
                geometry.dilation, False, (0, 0), geometry.groups, (needs_x, True, True))
            if torch.is_grad_enabled():
                # second derivatives are asked for: autograd shall know what was made of what
                wanted = [tensor for tensor, needed in zip(tensors, needs) if needed]
                found = iter(torch.autograd.grad(kernel, wanted, (by_weight, by_bias), create_graph=True))
                return (by_x, None, None, *(next(found) if needed else None for needed in needs))
            wide = _wide(parts)
            kind = wide.scale.dtype
            by_parts = merged.gradients(wide, Kernel(by_weight.to(kind), by_bias.to(kind)))
        by_tensor = merged.at_places(parts, by_parts)
        return (by_x, None, None, *(found.to(tensor.dtype) if needed else None
                                    for found, tensor, needed in zip(by_tensor, tensors, needs)))


def form_of(parts: Tree) -> Tree:
    """What is known of the numbers of a block, or of any tree of tensors, without them."""
    form: Tree = merged.with_tensors(parts, iter([merged.Place()] * len(merged.tensors_of(parts))))
    return form


@contextmanager
def _unrecorded() -> Iterator[None]:
    """What is computed here is a constant to PyTorch's tracer."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def recorded(x: Tensor, tensors: List[Tensor]) -> bool:
    """Whether somebody records or transforms what is computed: tracers, function transforms, fake tensors."""
    if torch.jit.is_tracing() or forward_ad._current_level >= 0 or x.is_meta:
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return any(type(tensor) not in (Tensor, nn.Parameter) for tensor in (x, *tensors))


def _dear(block: 'Block', x: Tensor) -> bool:
    """Whether merging with gradients takes longer than running the branches.

    Merging a 1x1 convolution into the KxK one behind it costs as much as a KxK convolution on a map of as many
    positions as it has channels. Measured: the branches win below one position per channel.
    """
    geometry = block.geometry
    height, width = geometry.output_size(x.shape[2:])
    return '1x1_kxk' in block.branches and 0 < x.shape[0] * height * width < geometry.in_channels // geometry.groups


def run(block: 'Block', x: Tensor) -> Optional[Tensor]:
    """Output of a block as one convolution, differentiable; None if it has to run branch by branch.

    Args:
        block (Block): Any.
        x (Tensor): Map of shape (N, C_in, H, W).

    Returns:
        Tensor: Map of shape (N, C_out, H', W'), or None.
    """
    if not isinstance(x, Tensor) or x.dim() != 4 or why_branchwise(block):
        return None
    parts, geometry = parts_of(block), block.geometry
    own = block.original_conv().weight.dtype
    tensors = merged.tensors_of(parts)
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        with _unrecorded(), torch.no_grad():
            kernel = merge(parts, own)
        return convolve(x, kernel, geometry)
    if compiling() or recorded(x, tensors):
        return convolve(x, merge(parts, own), geometry)
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
        return convolve(x, constant.kernel(block, parts, lambda numbers: merge(numbers, own)), geometry)
    constant.forget(block)
    if _dear(block, x):
        return None
    dtype = autocast_dtype(x.device)
    if dtype is not None and own != torch.float64:
        x, own = x.to(dtype), dtype
    out: Tensor = _Convolution.apply(x, form_of(parts), own, *tensors)  # type: ignore[no-untyped-call]
    return out
