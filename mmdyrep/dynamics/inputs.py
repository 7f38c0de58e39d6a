"""Several ops calibrated from one pass over the batches: their inputs are kept, and each op alone is run on them."""
from contextlib import ExitStack
from functools import partial
from typing import Any, Dict, List, NamedTuple, Sequence, Set, Tuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.reparam import Block, Measure, Statistics
from mmdyrep.reparam.surgery import outer_blocks

from .calibration import Calibration, Found, Look
from .passes import Stop, passes

# bytes that may be kept however small the network is
FREE = 1 << 26


class _Call(NamedTuple):
    """Arguments of an op, and the state they were in."""

    args: Tuple[Any, ...]
    kwargs: Dict[str, Any]
    versions: List[int]
    autocast: Dict[str, torch.dtype]

    @classmethod
    def of(cls, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> '_Call':
        autocast = {'cuda': torch.get_autocast_gpu_dtype()} if torch.is_autocast_enabled() else {}
        if torch.is_autocast_cpu_enabled():
            autocast['cpu'] = torch.get_autocast_cpu_dtype()
        return cls(args, kwargs, _versions(args, kwargs), autocast)

    @property
    def whole(self) -> bool:
        """Whether nobody has written into the input since."""
        return self.versions == _versions(self.args, self.kwargs)

    def again(self, op: nn.Module) -> None:
        with ExitStack() as stack:
            for device, dtype in self.autocast.items():
                stack.enter_context(torch.autocast(device, dtype))
            op(*self.args, **self.kwargs)


def _tensors(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> List[Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def _versions(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> List[int]:
    return [-1 if tensor.is_inference() else tensor._version for tensor in _tensors(args, kwargs)]


def _bytes(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(args, kwargs))


class Inputs:
    """Calibrates several ops, each as `Calibration` would while the others are as they are at the pass.

    The inputs of an op don't depend on what is done to other ops, whose function is kept. So one pass keeps the inputs
    of all, and norms in an op are measured by running that op alone, as often as it takes. Kept is no more than what
    training keeps of the layers up to the last of the ops (inputs of convolutions and norms), the smallest inputs
    first: ops with large ones lie in front, where passes through the network are short, and have passes of their own.

    Args:
        calibration (Calibration): On the kept batches.
        root (nn.Module): What the names of ops are relative to.
    """

    def __init__(self, calibration: Calibration, root: nn.Module) -> None:
        self._calibration, self._root = calibration, root
        self._kept: Dict[str, List[_Call]] = {}
        self._seen: Set[str] = set()

    def collect(self, names: Sequence[str], norms: Sequence[_BatchNorm] = ()) -> List[Statistics]:
        """Keep the inputs of ops, in one pass over the batches.

        Args:
            names (Sequence[str]): Of convolutions or blocks.
            norms (Sequence[_BatchNorm]): Measured in the same pass, in the mode that they are in.

        Returns:
            list[Statistics]: Of the norms.

        Raises:
            NotReached: If a norm is not reached by any batch of any rank; on all ranks.
        """
        ops = {name: self._root.get_submodule(name) for name in names}
        self._seen.update(ops)
        if not ops and not norms:
            return []
        keeper, found = _Keeper(list(ops.values()), _layers(self._root), self._calibration), Found(norms)
        wanted = {*ops.values(), *norms}

        def after() -> bool:
            if keeper.first:
                wanted.difference_update(keeper.drop())
            keeper.next()
            return bool(wanted)

        self._calibration.visit({**keeper.looks, **found.looks}, wanted, after=after)
        self._kept.update({name: keeper.kept[op] for name, op in ops.items() if op in keeper.kept})
        return found.means() if norms else []

    def of(self, name: str) -> Measure:
        """What measures norms in an op of this name, as it is at the call."""
        return partial(self._measure, name)

    def _measure(self, name: str, norms: Sequence[_BatchNorm]) -> List[Statistics]:
        if name not in self._seen:
            self.collect([name])
        kept = self._kept.get(name)
        if kept is None or not all(call.whole for call in kept):
            return self._calibration(norms)
        op, found, missing = self._root.get_submodule(name), Found(norms), set()

        def see(norm: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
            found.looks[norm](args, kwargs)
            missing.discard(norm)
            if not missing:
                raise Stop

        hooks, looked_at = [norm.register_forward_pre_hook(see, with_kwargs=True) for norm in norms], set(norms)
        with passes(hooks, op) as through:
            for norm in norms:
                norm.training = True
            for branch in op.branches.values() if isinstance(op, Block) else ():
                if branch.bn in looked_at:
                    # nothing more is made of what such a norm puts out
                    branch.bn.forward = _nothing  # type: ignore[assignment, method-assign]
            for call in kept:
                missing.update(norms)
                through(call.again, op)
        return found.means()


def _nothing(x: Tensor) -> Tensor:
    return x.new_zeros(1, 1, 1, 1)


def _layers(root: nn.Module) -> List[nn.Module]:
    """Convolutions and norms outside of blocks, and blocks that lie in no other."""
    blocks = list(outer_blocks(root).values())
    inside = {module for block in blocks for module in block.modules()}
    return blocks + [module for module in root.modules()
                     if isinstance(module, (nn.Conv2d, _BatchNorm)) and module not in inside]


class _Keeper:
    """Keeps what ops are called with, as long as it is not too much.

    Args:
        ops (Sequence[nn.Module]): Whose inputs to keep.
        layers (Sequence[nn.Module]): What training keeps the inputs of.
        calibration (Calibration): Whose passes they are.
    """

    def __init__(self, ops: Sequence[nn.Module], layers: Sequence[nn.Module], calibration: Calibration) -> None:
        self.kept: Dict[nn.Module, List[_Call]] = {op: [] for op in ops}
        self.looks: Dict[nn.Module, Look] = {module: partial(self._look, module) for module in {*layers, *ops}}
        self.first = True
        self._layers, self._number, self._most = layers, len(calibration.batches), calibration.calls
        self._times: Dict[nn.Module, int] = {}  # of the batch
        self._sizes: Dict[nn.Module, int] = {}  # of the first batch

    def _look(self, module: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        self._times[module] = self._times.get(module, 0) + 1
        if self.first:
            self._sizes[module] = self._sizes.get(module, 0) + _bytes(args, kwargs)
        # further calls are not seen by a pass that ends here
        if module in self.kept and self._times[module] <= self._most:
            self.kept[module].append(_Call.of(args, kwargs))

    def next(self) -> None:
        """A batch has come through."""
        self.first = False
        self._times.clear()

    def drop(self) -> List[nn.Module]:
        """Let go of ops that all batches would bring too much of, and of those not reached by the first one.

        The same ones on all ranks, whose passes must end at the same place: norms may communicate in them.
        """
        ops = list(self.kept)
        sizes = [self._sizes.get(op, 0) for op in ops]
        limit = max(FREE, sum(self._sizes.get(layer, 0) for layer in self._layers))
        if dist.is_available() and dist.is_initialized() and ops:
            table = torch.tensor([*sizes, -limit, *(-size for size in sizes)], dtype=torch.int64,
                                 device=next(ops[0].parameters()).device)
            dist.all_reduce(table, dist.ReduceOp.MAX)
            values = table.tolist()
            # the largest of any rank; none where a rank has not been there
            sizes = [most if least else 0 for most, least in zip(values[:len(ops)], values[len(ops) + 1:])]
            limit = -values[len(ops)]
        gone, total = [], 0
        for size, op in sorted(zip(sizes, ops), key=lambda pair: pair[0]):
            total += size * self._number
            if not size or total > limit:
                gone.append(op)
                del self.kept[op]
        return gone
