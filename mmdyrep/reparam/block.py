"""A convolution trained as the sum of several branches (Figure 3)."""
from typing import Dict, Iterable, List, MutableMapping, Optional, Sequence, Union, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import gating, kernels, merging, online, summing
from .answers import AsConv
from .branches import BRANCHES, Branch, KxK, MakeNorm, kernel_of
from .gating import Gate
from .geometry import Geometry
from .handing import exchange_hooks
from .initializing import Drawn, Start
from .kernels import Kernel
from .statistics import Measure, Statistics, go_on, restate, running, seen_by, store

# Below this, a channel's gamma is moved into the weight before something is absorbed by division.
TINY_GAMMA = 1e-3


class Block(AsConv):
    """Branches around an original convolution: ``scale * sum_j BN_j(op_j(x))``.

    ``scale``, shape (C_out,), is the deviation of the op's output when it was first expanded. It lets the
    branches work on normalized values, so that a gamma means the same in every op.

    Args:
        conv (nn.Conv2d): The original; the module itself moves into the block, its bias into the batch norm; hooks
            that it has become hooks of the block.
        make_norm (callable): Makes a batch norm for a number of channels.
        behind (Statistics, optional): Mean and variance of the op's output. Defaults to 0 and 1.
        rescale (bool): False keeps the scale at 1. Defaults to True.
    """

    # norms never work with statistics of the batch; False: they take theirs from the next one (see `fix`)
    fixed, settled = False, True
    # a search decides which of the branches run
    gate: Optional[Gate] = None
    scale: Tensor
    branches: MutableMapping[str, Branch]

    def __init__(self, conv: nn.Conv2d, make_norm: MakeNorm, behind: Optional[Statistics] = None,
                 rescale: bool = True) -> None:
        super().__init__()
        self.geometry = Geometry.of(conv)
        self.has_bias = conv.bias is not None
        # of the bias, which is no parameter as long as the block lasts
        self.trains_bias = conv.bias is not None and conv.bias.requires_grad
        self.make_norm = make_norm
        self.register_buffer('scale', torch.ones_like(conv.weight[:, 0, 0, 0]).detach())
        self.branches = cast(MutableMapping[str, Branch], nn.ModuleDict())
        with torch.no_grad():
            kernel = kernels.of_conv(conv)
        conv.bias = None
        exchange_hooks(conv, self)
        self.train(conv.training)
        self._insert('kxk', KxK(self.geometry, make_norm, conv))
        self.assign(kernel, behind, rescale and behind is not None)

    @property
    def origin(self) -> Branch:
        """The branch with the original convolution, or with the block that this has become."""
        return self.branches['kxk']

    @property
    def added(self) -> List[str]:
        """Names of the branches beside the original."""
        return [name for name in self.branches if name != 'kxk']

    def forward(self, input: Tensor) -> Tensor:
        """Map of shape (N, C_in, H, W) to (N, C_out, H', W'), as one convolution or one sum where nobody can tell.

        The argument is named as a convolution's, for calls by keyword.
        """
        if self.training and not self.settled:
            online.settle(self, input)
        out = merging.run(self, input)
        if out is None:
            out = summing.run(self, input)
        return self.note(self.branchwise(input) if out is None else out)

    def branchwise(self, x: Tensor) -> Tensor:
        """What :meth:`forward` computes, branch by branch."""
        branches = iter(gating.running(self, self.training))
        out: Tensor = next(branches)(x)
        for branch in branches:
            # not in place: the output of a module with a full backward hook is a view
            out = out + branch(x)
        return out * self.scale.view(1, -1, 1, 1)

    @torch.no_grad()
    def kernel(self) -> Kernel:
        """Convolution that the block is equivalent to in eval mode (Eq. 2)."""
        return self.merged()

    def merged(self) -> Kernel:
        """As :meth:`kernel`, with gradients to the branches."""
        return self._sum(gating.running(self)).scaled(self.scale.double())

    def _sum(self, branches: Iterable[Branch]) -> Kernel:
        shape = self.geometry.out_channels, self.geometry.in_channels // self.geometry.groups
        weight = torch.zeros(*shape, *self.geometry.kernel_size, dtype=torch.float64, device=self.scale.device)
        total = Kernel(weight, weight.new_zeros(shape[0]))
        for branch in branches:
            total += branch.kernel()
        return total

    def _insert(self, name: str, branch: Branch) -> None:
        like = branch.conv.weight if name == 'kxk' else next(self.parameters())
        branch.to(device=like.device, dtype=like.dtype)
        if not like.requires_grad:
            branch.requires_grad_(False)
        if not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
            branch.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        branch.train(self.training)
        if name != 'kxk':
            # follows frozen statistics too, see `follow`
            go_on(online.norms_in(branch), self.origin.bn)
        self.branches[name] = branch
        # one order whatever the history: optimizer state is matched by position when a run is resumed
        for known in BRANCHES:
            if known in self.branches:
                self.branches[known] = self.branches.pop(known)

    def require_whole(self) -> None:
        """Refuse a change of what a tool has fused already, or of a weight that can't be written.

        Raises:
            RuntimeError: If a norm of this block, or of one in it, has become nn.Identity.
            TypeError: If the original's weight is no parameter any more.
        """
        kernel_of(self.original_conv())
        fused = [name for name, module in self.named_modules() if isinstance(module, nn.Identity)]
        if fused:
            raise RuntimeError(f'{fused[0]} of the block is no batch norm any more: a tool has fused it into a '
                               'convolution. The block can still be fused (switch_to_deploy) but not be changed; '
                               'change the network before such a tool runs')

    def expand(self, names: Sequence[str], gamma: float, generator: Optional[torch.Generator] = None,
               measure: Optional[Measure] = None, rescale: bool = False, start: Optional[Start] = None) -> None:
        """Add branches and subtract them from the original, so that the sum stays what it was (Eq. 6, 8).

        Args:
            names (Sequence[str]): Branches that are not there yet and fit the geometry.
            gamma (float): First scale of their last batch norms.
            generator (torch.Generator, optional): Source of their weights.
            measure (callable, optional): Measures statistics on training batches: of the new branches
                before they are subtracted, of the original afterwards.
            rescale (bool): Take the scale from the measured output, for a block just made.
            start (Drawn or Split, optional): What they start from. Defaults to draws of PyTorch's kind.
        """
        before, start = self.kernel(), start or Drawn()
        fresh = []
        for name in names:
            with torch.random.fork_rng(devices=[]):
                branch = BRANCHES[name](self.geometry, self.make_norm)
            self._insert(name, branch)
            start.fill(name, branch, before, gamma, generator)
            fresh.append(branch)
        norms = [self.origin.bn, *(norm for branch in fresh for norm in online.norms_in(branch))]
        measured: Dict[_BatchNorm, Statistics] = dict(zip(norms, measure(norms))) if measure else {}
        behind = measured.pop(self.origin.bn, None) if rescale else None
        if behind:
            self.scale.copy_((behind.var.double() + self.origin.bn.eps).sqrt())
        for branch in fresh:
            start.take(branch, measured, self.scale, before)
        if behind:
            self.assign(before, behind, rescale=False)
        else:
            self.absorb(-self._sum(fresh).scaled(self.scale.double()))
        self.settle(measure, [norm for branch in fresh for norm in start.moving(branch)])

    def remove(self, names: Sequence[str], measure: Optional[Measure] = None) -> None:
        """Absorb branches into the original (Eq. 10)."""
        self.require_whole()
        gone = self._sum([self.branches[name] for name in names]).scaled(self.scale.double())
        for name in names:
            del self.branches[name]
        self.absorb(gone)
        self.settle(measure)

    @torch.no_grad()
    def absorb(self, kernel: Kernel) -> None:
        """Add a kernel of the block's shape to what the original computes."""
        bn, conv = self.origin.bn, self.origin.conv
        part = kernel.scaled(1 / self.scale.double())
        tiny = bn.weight.abs() < TINY_GAMMA
        if tiny.any():
            factor = torch.where(tiny, bn.weight, torch.ones_like(bn.weight)).double()
            _multiply(conv, factor)
            running(bn).mean.mul_(factor)
            bn.weight[tiny] = 1
        bn.bias.copy_(bn.bias.double() + part.bias)
        weight = part.weight / kernels.gain(bn).view(-1, 1, 1, 1)
        if isinstance(conv, Block):
            conv.absorb(Kernel(weight, torch.zeros_like(part.bias)))
        else:
            conv.weight.copy_(conv.weight.double() + weight)

    @torch.no_grad()
    def assign(self, kernel: Kernel, behind: Optional[Statistics] = None, rescale: bool = True) -> None:
        """Set the original so that the block computes ``kernel``; the other branches stay (Eq. 6).

        Args:
            kernel (Kernel): What the block shall be equivalent to.
            behind (Statistics, optional): Mean and variance of the op's output without bias; None: 0 and 1.
            rescale (bool): Make the deviation of the output the block's scale. Defaults to True.
        """
        self.require_whole()
        bn, conv = self.origin.bn, self.origin.conv
        zero = torch.zeros_like(kernel.bias)
        mean, var = (behind.mean.double(), behind.var.double()) if behind else (zero, zero + 1)
        deviation = (var + bn.eps).sqrt()
        if rescale:
            self.scale.copy_(deviation)
        scale = self.scale.double()
        others = self._sum([self.branches[name] for name in self.added])
        store(bn, mean, var, deviation / scale, (mean + kernel.bias) / scale - others.bias)
        weight = kernel.weight - others.weight * scale.view(-1, 1, 1, 1)
        if isinstance(conv, Block):
            conv.assign(Kernel(weight, zero), Statistics(mean, var))
        else:
            conv.weight.copy_(weight)

    def settle(self, measure: Optional[Measure] = None, beside: Sequence[_BatchNorm] = ()) -> None:
        """Calibrate the original's batch norms on its changed weight, the deepest one first, and those ``beside``."""
        if measure is None:
            return
        if isinstance(self.origin.conv, Block):
            self.origin.conv.settle(measure)
        norms = [self.origin.bn, *beside]
        for norm, statistics in zip(norms, measure(norms)):
            restate(norm, statistics)

    def follow(self, behind: _BatchNorm) -> None:
        """Put the norms into the mode of the one behind the op: frozen statistics stay frozen in a block."""
        for norm in online.norms_in(self):
            norm.train(behind.training and not self.fixed)

    @torch.no_grad()
    def count(self, batches: Tensor) -> None:
        """Let the statistics of the original, in nested blocks too, stand for so many batches."""
        block: Union[nn.Conv2d, Block] = self
        while isinstance(block, Block):
            seen_by(block.origin.bn).copy_(batches)
            block = block.origin.conv

    def begin(self, behind: _BatchNorm) -> None:
        """Let the norms of a block just made go on where the one behind the op stands."""
        go_on(online.norms_in(self), behind)

    def fix(self) -> None:
        """Let the norms work with statistics that stay as they are, in training, too.

        Where there are none yet, they come from the next batch, which does not change what the block computes.
        """
        self.fixed = True
        for norm in online.norms_in(self):
            norm.eval()
        self.settled = not online.missing(self)
        if not self.settled:
            online.keep_compilers_out()

    @torch.no_grad()
    def fold(self) -> Kernel:
        """Write the block's function into its original convolution, which leaves the block.

        Returns:
            Kernel: What the block computed; its bias has a place in the convolution only if that had one.
        """
        kernel = self.kernel()
        conv = self.original_conv()
        exchange_hooks(self, conv)
        conv.weight.copy_(kernel.weight)
        # a tool that fuses convolution and norm may have given it one
        conv.bias = None
        if self.has_bias:
            conv.bias = nn.Parameter(kernel.bias.to(conv.weight.dtype), requires_grad=self.trains_bias)
        return kernel

    def original_conv(self) -> nn.Conv2d:
        """The convolution that the block has grown from."""
        conv = self.origin.conv
        return conv.original_conv() if isinstance(conv, Block) else conv


def _multiply(op: Union[nn.Conv2d, Block], factor: Tensor) -> None:
    """Multiply the output channels of a convolution or a block."""
    if isinstance(op, Block):
        for branch in op.branches.values():
            branch.bn.weight.mul_(factor)
            branch.bn.bias.mul_(factor)
    else:
        op.weight.mul_(factor.view(-1, 1, 1, 1))
