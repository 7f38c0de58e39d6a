"""The branches of Table 1. Each knows its forward and the kernel that it is equivalent to.

All end in a batch norm, ``bn``; ``conv`` is a branch's last convolution, ``conv1`` and ``bn1`` its inner pair.
"""
from typing import TYPE_CHECKING, Callable, Dict, List, Sequence, Tuple, Type, Union

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import kernels
from .geometry import Geometry
from .kernels import Kernel

if TYPE_CHECKING:
    from .block import Block

MakeNorm = Callable[[int], _BatchNorm]


class Branch(nn.Module):
    """One op followed by batch norm, equivalent to a convolution of the block's geometry.

    Args:
        geometry (Geometry): Of the convolution that the block stands for.
        make_norm (callable): Makes a batch norm for a number of channels.
    """

    # what a branch has of these; a block may stand in the place of a convolution, in branches that can be nested in
    conv1: nn.Conv2d
    bn1: _BatchNorm
    conv: Union[nn.Conv2d, 'Block']
    bn: _BatchNorm

    def __init__(self, geometry: Geometry, make_norm: MakeNorm) -> None:
        super().__init__()
        self.geometry = geometry

    @staticmethod
    def misfit(geometry: Geometry) -> str:
        """Why this branch can't stand beside such a convolution; empty if it can."""
        return ''

    def kernel(self) -> Kernel:
        """Kernel that the branch is equivalent to in eval mode, in the block's kernel size."""
        return kernels.fuse_bn(kernels.embed(self.op_kernel(), *self.geometry.kernel_size), self.bn)

    def op_kernel(self) -> Kernel:
        """Kernel of the branch without its last batch norm."""
        return kernel_of(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Map of shape (N, C_in, H, W) to (N, C_out, H', W')."""
        return normed(self.bn, self.conv(x))


class KxK(Branch):
    """The original convolution, taken over as it is; its bias belongs to the batch norm."""

    def __init__(self, geometry: Geometry, make_norm: MakeNorm, conv: nn.Conv2d) -> None:
        super().__init__(geometry, make_norm)
        self.conv = conv
        self.bn = make_norm(geometry.out_channels)


def _off_centre(geometry: Geometry, axes: Sequence[int]) -> str:
    if all(geometry.centred[axis] for axis in axes):
        return ''
    return (f"needs an odd kernel and 'same' padding, has kernel {geometry.kernel_size}, "
            f'padding {geometry.padding}, dilation {geometry.dilation}')


class OneByOne(Branch):
    """1x1 convolution."""

    def __init__(self, geometry: Geometry, make_norm: MakeNorm) -> None:
        super().__init__(geometry, make_norm)
        self.conv = geometry.conv((1, 1), (0, 0))
        self.bn = make_norm(geometry.out_channels)

    @staticmethod
    def misfit(geometry: Geometry) -> str:
        return _off_centre(geometry, (0, 1))


class OneByOneKxK(Branch):
    """1x1 convolution of the input's width, batch norm, KxK convolution.

    Zeros are padded between the 1x1 convolution and its norm, so that the border holds what the norm
    makes of zero and the pair merges exactly, in train mode as in eval mode.
    """

    def __init__(self, geometry: Geometry, make_norm: MakeNorm) -> None:
        super().__init__(geometry, make_norm)
        self.conv1 = geometry.pointwise(geometry.in_channels)
        self.bn1 = make_norm(geometry.in_channels)
        self.conv = geometry.conv(geometry.kernel_size, (0, 0))
        self.bn = make_norm(geometry.out_channels)

    def op_kernel(self) -> Kernel:
        first = kernels.fuse_bn(kernel_of(self.conv1), self.bn1)
        return kernels.chain_1x1(first, kernel_of(self.conv), self.geometry.groups)

    def forward(self, x: Tensor) -> Tensor:
        return normed(self.bn, self.conv(normed(self.bn1, bordered(self.conv1, self.geometry, x))))


class OneByOneAvg(Branch):
    """1x1 convolution, batch norm, KxK average; of a depthwise op the average alone."""

    def __init__(self, geometry: Geometry, make_norm: MakeNorm) -> None:
        super().__init__(geometry, make_norm)
        if not geometry.depthwise:
            self.conv1 = geometry.pointwise(geometry.out_channels)
            self.bn1 = make_norm(geometry.out_channels)
        self.bn = make_norm(geometry.out_channels)

    def op_kernel(self) -> Kernel:
        geometry = self.geometry
        if geometry.depthwise:
            first = kernels.identity(geometry.in_channels, geometry.groups, self.bn.weight.device)
        else:
            first = kernels.fuse_bn(kernel_of(self.conv1), self.bn1)
        return kernels.average(first, *geometry.kernel_size)

    def _average(self, x: Tensor) -> Tensor:
        geometry = self.geometry
        if geometry.dilation == (1, 1):
            return F.avg_pool2d(x, geometry.kernel_size, geometry.stride)
        channels, (height, width) = geometry.out_channels, geometry.kernel_size
        weight = x.new_full((channels, 1, height, width), 1 / (height * width))
        return F.conv2d(x, weight, None, geometry.stride, 0, geometry.dilation, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.geometry.depthwise:
            return normed(self.bn, self._average(self.geometry.pad(x)))
        return normed(self.bn, self._average(normed(self.bn1, bordered(self.conv1, self.geometry, x))))


class OneByK(Branch):
    """Convolution of one row and K columns."""

    def __init__(self, geometry: Geometry, make_norm: MakeNorm) -> None:
        super().__init__(geometry, make_norm)
        self.conv = geometry.conv((1, geometry.kernel_size[1]), (0, geometry.padding[1]))
        self.bn = make_norm(geometry.out_channels)

    @staticmethod
    def misfit(geometry: Geometry) -> str:
        return _off_centre(geometry, (0,))


class KByOne(Branch):
    """Convolution of K rows and one column."""

    def __init__(self, geometry: Geometry, make_norm: MakeNorm) -> None:
        super().__init__(geometry, make_norm)
        self.conv = geometry.conv((geometry.kernel_size[0], 1), (geometry.padding[0], 0))
        self.bn = make_norm(geometry.out_channels)

    @staticmethod
    def misfit(geometry: Geometry) -> str:
        return _off_centre(geometry, (1,))


class Residual(Branch):
    """Identity."""

    def __init__(self, geometry: Geometry, make_norm: MakeNorm) -> None:
        super().__init__(geometry, make_norm)
        self.bn = make_norm(geometry.out_channels)

    @staticmethod
    def misfit(geometry: Geometry) -> str:
        if geometry.in_channels != geometry.out_channels or geometry.stride != (1, 1):
            return (f'needs equal channels and stride 1, has {geometry.in_channels} -> '
                    f'{geometry.out_channels}, stride {geometry.stride}')
        return _off_centre(geometry, (0, 1))

    def op_kernel(self) -> Kernel:
        return kernels.identity(self.geometry.in_channels, self.geometry.groups, self.bn.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        return normed(self.bn, x)


# In this order branches stand in a block, whatever the order they came in.
BRANCHES: Dict[str, Type[Branch]] = {
    'kxk': KxK,
    '1x1': OneByOne,
    '1x1_kxk': OneByOneKxK,
    '1x1_avg': OneByOneAvg,
    '1xk': OneByK,
    'kx1': KByOne,
    'residual': Residual,
}

# Table 1
SPACES: Dict[str, Tuple[str, ...]] = {
    'repvgg': ('kxk', '1x1', 'residual'),
    'dbb': ('kxk', '1x1', '1x1_kxk', '1x1_avg'),
    'dyrep': tuple(BRANCHES),
}


def resolve_space(space: Union[str, Sequence[str]]) -> List[str]:
    """Branch names of an operation space of Table 1, or of a list of names, in the order of a block.

    Raises:
        ValueError: If the space or one of the names is unknown.
    """
    if isinstance(space, str):
        if space not in SPACES:
            raise ValueError(f'unknown operation space {space!r}; there are {sorted(SPACES)}, or give a list of '
                             f'branch names out of {list(BRANCHES)}')
        return list(SPACES[space])
    unknown = [name for name in space if name not in BRANCHES]
    if unknown:
        raise ValueError(f'unknown branches {unknown} in the operation space; there are {list(BRANCHES)}')
    return [name for name in BRANCHES if name == 'kxk' or name in space]


def kernel_of(op: Union[nn.Conv2d, 'Block']) -> Kernel:
    """Kernel of a convolution or of a block.

    Raises:
        TypeError: If it is neither, as after a tool that puts modules of its own in place of convolutions, or if its
            weight is no parameter, which may be out of date and can't be written.
    """
    if isinstance(op, nn.Conv2d):
        if op._parameters.get('weight') is None:
            raise TypeError('the weight of a convolution in a block is computed from others (pruning, weight norm); '
                            'make it a parameter again (prune.remove, remove_parametrizations) before the block is '
                            'changed or fused')
        return kernels.of_conv(op)
    if not hasattr(op, 'merged'):
        raise TypeError(f'a convolution in a block has been replaced by {type(op).__name__}, which has no known '
                        'kernel; fuse the blocks (switch_to_deploy) before another tool changes convolutions')
    return op.merged()


def bordered(conv: nn.Conv2d, geometry: Geometry, x: Tensor) -> Tensor:
    """Map of a 1x1 convolution with the border that it makes of zeros, as wide as the padding of ``geometry``.

    The border is its bias: none in training, that of the merged norm where a tool has fused convolution and norm.
    """
    out = conv(x)
    padded = geometry.pad(out)
    if conv.bias is None or padded is out:
        return padded
    return padded + conv.bias.view(1, -1, 1, 1) * geometry.pad(torch.zeros_like(out[:1, :1]), 1.0)


def normed(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm of a map; by the running statistics where there is but one value per channel.

    A convolution with a bias of its own and no norm behind trains on such maps; PyTorch's norm refuses them, since
    one value has no deviation. Empty maps would leave NaN in the running statistics.
    """
    # a map that is traced symbolically (torch.fx) has no size
    if norm.training and isinstance(x, Tensor) and x.numel() <= x.shape[1] and not _synchronized(norm):
        norm.training = False
        try:
            out: Tensor = norm(x)
        finally:
            norm.training = True
    else:
        out = norm(x)
    return out


def _synchronized(norm: nn.Module) -> bool:
    """Whether the norm takes its statistics over several processes, all of which must take part."""
    return isinstance(norm, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized() and (
        dist.get_world_size(norm.process_group) > 1)
