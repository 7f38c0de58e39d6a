"""What new branches start from: drawn at random behind a small gamma, or split off the op's own kernel."""
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Type, Union

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import kernels
from .branches import Branch
from .kernels import Kernel
from .statistics import Statistics, restate, running

if TYPE_CHECKING:
    from .block import Block

Parts = Dict[str, Tensor]


class Drawn:
    """Convolutions as PyTorch draws them, uniform within fan_in^-1/2; the last batch norm has the gamma asked for.

    Args:
        identity (bool): 1x1_kxk starts as the identity in front of its KxK convolution, as DBB has it.
    """

    def __init__(self, identity: bool = False) -> None:
        self.identity = bool(identity)

    def draw(self, shape: torch.Size, generator: Optional[torch.Generator]) -> Tensor:
        """Weights of a convolution; on the CPU, so that a seed gives the same on every device."""
        bound = shape[1:].numel() ** -0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)

    def fill(self, name: str, branch: Branch, op: Kernel, gamma: float, generator: Optional[torch.Generator]) -> None:
        """Write the convolutions and gammas of a branch.

        Args:
            name (str): Of the branch.
            branch (Branch): Changed in place.
            op (Kernel): What the op computes.
            gamma (float): First scale of the last batch norm.
            generator (torch.Generator, optional): Source of random numbers. Defaults to PyTorch's own.
        """
        self._draw_all(branch, generator)
        self._finish(name, branch, gamma)

    def _draw_all(self, branch: Branch, generator: Optional[torch.Generator]) -> None:
        for module in branch.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.detach().copy_(self.draw(module.weight.shape, generator))

    def _finish(self, name: str, branch: Branch, gamma: float) -> None:
        if self.identity and name == '1x1_kxk':
            nn.init.dirac_(branch.conv1.weight, branch.conv1.groups)
        nn.init.constant_(branch.bn.weight, gamma)

    def take(self, branch: Branch, measured: Mapping[_BatchNorm, Statistics], scale: Tensor, op: Kernel) -> None:
        """Let the norms of a branch just filled take their statistics, as far as there are any.

        Args:
            branch (Branch): Changed in place.
            measured (Mapping): By norm; empty if nothing has been measured.
            scale (Tensor): Of the block, shape (C_out,).
            op (Kernel): What the op computes.
        """
        for norm in _norms(branch):
            if norm in measured:
                own = running(norm)
                own.mean.copy_(measured[norm].mean)
                own.var.copy_(measured[norm].var)

    def moving(self, branch: Branch) -> List[_BatchNorm]:
        """Norms whose inputs have changed since they were measured, as an inner norm has been set."""
        return []

    def restart(self, block: 'Block', gamma: float) -> None:
        """Start anew in a block, and in those nested in it, after the network around it was initialized by itself.

        Args:
            block (Block): All its convolutions have just been drawn.
            gamma (float): First scale of the last batch norms.
        """
        for name in block.added:
            self._finish(name, block.branches[name], gamma)
        for inner in _nested(block):
            self.restart(inner, gamma)


class Normal(Drawn):
    """Convolutions drawn as the paper's authors do: normal, with variance 2 / (K * K * C_out)."""

    def draw(self, shape: torch.Size, generator: Optional[torch.Generator]) -> Tensor:
        """As :meth:`Drawn.draw`."""
        return torch.empty(shape).normal_(0, (2 / (shape[0] * shape[2:].numel())) ** 0.5, generator=generator)

    def restart(self, block: 'Block', gamma: float) -> None:
        """As :meth:`Drawn.restart`; the network may have another rule."""
        for name in block.added:
            self._draw_all(block.branches[name], None)
        super().restart(block, gamma)


class Split:
    """Branches start as a part of the op's own kernel: alpha times its projection on what they can compute.

    1x1: the centre tap; 1xk, kx1: the middle row, column; 1x1_avg: the mean of the taps; 1x1_kxk: the identity, then
    the kernel; residual: the diagonal of the centre. The gamma is what makes the branch that part, behind norms with
    the statistics measured: about as large as the part, so that its convolutions learn at the op's own pace.

    Args:
        alpha (float): Which part is given away to each branch. Defaults to 0.25.
        noise (float): Deviation of what is added to each convolution to break the symmetry between branches, relative
            to the root mean square of the output channel's weights. Defaults to 0.1.
    """

    def __init__(self, alpha: float = 0.25, noise: float = 0.1) -> None:
        for name, value, least in (('alpha', alpha, 'positive'), ('noise', noise, 'at least 0')):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1 or (
                    least == 'positive' and value == 0):
                raise ValueError(f'{name} of a split must be a number up to 1, {least}, got {value!r}')
        self.alpha, self.noise = float(alpha), float(noise)

    def fill(self, name: str, branch: Branch, op: Kernel, gamma: float, generator: Optional[torch.Generator]) -> None:
        """As :meth:`Drawn.fill`; ``gamma`` is not heeded."""
        for part, weight in PROJECTIONS[name](op.weight, branch).items():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            size = weight.square().mean((1, 2, 3), keepdim=True).sqrt()
            _write(getattr(branch, part), weight + self.noise * size * noise)
        for norm in _norms(branch):
            norm.weight.copy_(kernels.deviation(norm))
        if not _has_convolution(branch):
            # a fixed kernel, whose share in the op's is a number per channel
            fixed = kernels.embed(branch.op_kernel(), *branch.geometry.kernel_size).weight
            share = (op.weight * fixed).sum((1, 2, 3)) / fixed.square().sum((1, 2, 3))
            branch.bn.weight.mul_(share)
        branch.bn.weight.mul_(self.alpha)

    def take(self, branch: Branch, measured: Mapping[_BatchNorm, Statistics], scale: Tensor, op: Kernel) -> None:
        """As :meth:`Drawn.take`; what the branch computes stays alpha times the projection, over the scale."""
        branch.bn.weight.div_(scale)
        for norm in _norms(branch):
            if norm in measured:
                restate(norm, measured[norm])
        if branch.bn not in measured:
            # as on white noise, of which the op makes the deviation `scale`
            own = branch.op_kernel().weight.square().sum((1, 2, 3))
            whole = op.weight.square().sum((1, 2, 3))
            var = torch.where(whole > 0, scale.double().square() * own / whole, torch.ones_like(whole))
            restate(branch.bn, Statistics(torch.zeros_like(var), var))

    def moving(self, branch: Branch) -> List[_BatchNorm]:
        """As :meth:`Drawn.moving`."""
        return [branch.bn] if hasattr(branch, 'bn1') else []

    def restart(self, block: 'Block', gamma: float, op: Optional[Kernel] = None) -> None:
        """As :meth:`Drawn.restart`: the op computes what its original convolution was drawn as.

        Args:
            block (Block): All its convolutions have just been drawn.
            gamma (float): Not heeded.
            op (Kernel, optional): What the block is to compute, of one nested in another.
        """
        if op is None:
            weight = block.original_conv().weight.detach().double().clone()
            op = Kernel(weight, weight.new_zeros(len(weight)))
        for name in block.added:
            self.fill(name, block.branches[name], op, gamma, None)
            self.take(block.branches[name], {}, block.scale, op)
        block.assign(op, rescale=False)
        for inner in _nested(block):
            self.restart(inner, gamma, inner.kernel())


Start = Union[Drawn, Split]
STARTS: Dict[str, Type[Start]] = {'default': Drawn, 'normal': Normal, 'split': Split}


def start_of(setting: Union[str, Mapping[str, Any]]) -> Start:
    """What new branches start from, by its name or ``dict(type=name, settings...)``.

    Raises:
        ValueError: If there is no such start, or it has no such setting.
    """
    settings = dict(type=setting) if isinstance(setting, str) else dict(setting)
    kind = settings.pop('type', None)
    if kind not in STARTS:
        raise ValueError(f'unknown initialization of branches {kind!r}; there are {list(STARTS)}, or '
                         "dict(type=one of them, settings of it)")
    try:
        return STARTS[kind](**settings)
    except TypeError:
        raise ValueError(f'initialization {kind!r} of branches takes no settings {sorted(settings)}; it has '
                         f'{list(STARTS[kind].__init__.__annotations__)[:-1]}') from None


def _middle(size: int) -> slice:
    return slice(size // 2, size // 2 + 1)


def _identity(branch: Branch) -> Tensor:
    channels, groups = branch.geometry.in_channels, branch.geometry.groups
    return kernels.identity(channels, groups, branch.bn.weight.device).weight


# weights of each convolution of a branch that make it the projection of a kernel (C_out, C_in / groups, K_h, K_w)
PROJECTIONS: Dict[str, Callable[[Tensor, Branch], Parts]] = {
    '1x1': lambda op, branch: {'conv': op[:, :, _middle(op.shape[2]), _middle(op.shape[3])]},
    '1x1_kxk': lambda op, branch: {'conv1': _identity(branch), 'conv': op},
    '1x1_avg': lambda op, branch: {'conv1': op.sum((2, 3), keepdim=True)} if _has_convolution(branch) else {},
    '1xk': lambda op, branch: {'conv': op[:, :, _middle(op.shape[2])]},
    'kx1': lambda op, branch: {'conv': op[:, :, :, _middle(op.shape[3])]},
    'residual': lambda op, branch: {},
}


def _norms(branch: Branch) -> List[_BatchNorm]:
    """Those of the branch itself, the inner one first, without those of blocks in it."""
    return [getattr(branch, name) for name in ('bn1', 'bn') if hasattr(branch, name)]


def _has_convolution(branch: Branch) -> bool:
    return hasattr(branch, 'conv') or hasattr(branch, 'conv1')


def _write(op: Union[nn.Conv2d, 'Block'], weight: Tensor) -> None:
    """Let a convolution, or a block without bias, compute a kernel."""
    if isinstance(op, nn.Conv2d):
        op.weight.detach().copy_(weight)
    else:
        op.assign(Kernel(weight, weight.new_zeros(len(weight))), rescale=False)


def _nested(block: 'Block') -> Iterator['Block']:
    """Blocks in a block, one level deep."""
    for branch in block.branches.values():
        inner = getattr(branch, 'conv', None)
        if inner is not None and not isinstance(inner, nn.Conv2d):
            yield inner
