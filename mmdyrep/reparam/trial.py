"""Ops expanded on copies of a network, and what is computed compared."""
import random
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import surgery
from .block import Block
from .eligible import fitting
from .lookalike import lookalike
from .probe import tensors_in
from .statistics import running

# relative to the largest value
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
# padded in both ways; that the others merge exactly does not depend on the network
TRIED = ('1x1', '1x1_avg')

Behind = Mapping[str, Optional[str]]
Reasons = Dict[str, str]


def generator_of_trials() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def in_words(error: Optional[Exception]) -> str:
    return f'{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ""}'


class Seen(NamedTuple):
    """What a forward pass shows: what each op read, what came out behind it, the output of the network."""

    inputs: Dict[str, List[Tensor]]
    outputs: Dict[str, List[Tensor]]
    result: List[Tensor]


class Failure(Exception):
    """A trial in which the network computed something else; ``ops`` says where, as far as it could be seen."""

    def __init__(self, reason: str, ops: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.ops = list(ops)


class Trial:
    """Expands ops of copies of a network and compares what is computed.

    Args:
        model (nn.Module): A copy already.
        ops (Mapping): Ops that the rules allow, and the batch norm behind each.
        args (tuple): Inputs, in the precision of the trial.
        kwargs (dict): Inputs by keyword.
        dtype (torch.dtype): Precision of the trial.
        shaken (bool): Give norms, and parameters that are about zero, random values, so that everything shows.

    Raises:
        Exception: If the network does not run this way.
    """

    def __init__(self, model: nn.Module, ops: Behind, args: Tuple[Any, ...], kwargs: Dict[str, Any], dtype: torch.dtype,
                 shaken: bool) -> None:
        self.ops, self.args, self.kwargs, self.tolerance = ops, args, kwargs, TOLERANCES[dtype]
        self.plain = self._copy(model).to(dtype)
        self.plain.eval()  # returns None in some libraries
        if shaken:
            shake(self.plain)
        self.before = self._run(self.plain)
        if not all(tensor.isfinite().all() for tensor in self.before.result):
            raise ValueError('the output is not finite')

    def failures(self) -> Reasons:
        """Ops that can't be expanded, and why."""
        reasons: Reasons = {}
        if self._failure(list(self.ops)) is None:
            return reasons
        # some networks change in their first forward pass
        self.before = self._run(self._copy(self.plain))
        while True:
            rest = [name for name in self.ops if name not in reasons]
            found = self._search(rest) if rest else {}
            if not found:
                return reasons
            reasons.update(found)

    def _search(self, names: Sequence[str]) -> Reasons:
        """Ops out of these that fail alone or together, by halves where it can't be seen which."""
        failure = self._failure(names)
        if failure is None:
            return {}
        if failure.ops or len(names) == 1:
            return dict.fromkeys(failure.ops or names, str(failure))
        half = len(names) // 2
        found = {**self._search(names[:half]), **self._search(names[half:])}
        return found or dict.fromkeys(names, str(failure))

    def _failure(self, names: Sequence[str]) -> Optional[Failure]:
        try:
            self._attempt({name: self.ops[name] for name in names})
        except Failure as failure:
            return failure
        except Exception as error:  # whatever a network may do with a block that it takes for a convolution
            return Failure(f'the network fails with a block in its place: {in_words(error)}')
        return None

    def _attempt(self, ops: Behind) -> None:
        model, generator = self._copy(self.plain), generator_of_trials()
        for name in ops:
            branches = fitting(TRIED, surgery.geometry_of(model.get_submodule(name)))
            surgery.expand(model, name, branches, self.ops, gamma=1.0, generator=generator)
        blocks = [cast(Block, model.get_submodule(name)) for name in ops]
        for block in blocks:
            kernel = block.kernel()
            shake(block)
            block.assign(kernel, running(block.origin.bn))
        self._compare(self.before, self._run(model), ops, 'expanded')
        for block in blocks:
            shake(block, seed=1)
        expanded = self._run(model)
        for name in ops:
            surgery.fold(model, name, self.ops)
        twin = self._copy(self.plain)
        twin.load_state_dict(model.state_dict(), strict=True)
        self._compare(expanded, self._run(twin), ops, 'fused and loaded into the plain network')

    @staticmethod
    def _copy(model: nn.Module) -> nn.Module:
        return lookalike(model, keep_hooks=True)

    @torch.no_grad()
    def _run(self, model: nn.Module) -> Seen:
        seen, handles = Seen({}, {}, []), []

        def keep(name: str, place: Optional[Dict[str, List[Tensor]]], whole: bool) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                if whole:
                    seen.inputs.setdefault(name, []).extend(tensor.clone() for tensor in tensors_in((args, kwargs)))
                if place is not None:
                    place.setdefault(name, []).extend(tensor.clone() for tensor in tensors_in(output))
            return hook

        for name, behind in self.ops.items():
            op = model.get_submodule(name)
            handles.append(op.register_forward_hook(keep(name, None if behind else seen.outputs, True),
                                                    with_kwargs=True))
            if behind:
                handles.append(model.get_submodule(behind).register_forward_hook(
                    keep(name, seen.outputs, False), with_kwargs=True))
        _seed_all()
        try:
            seen.result.extend(tensors_in(model(*_cloned(self.args), **_cloned(self.kwargs))))
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def _compare(self, before: Seen, after: Seen, ops: Behind, state: str) -> None:
        missed = [name for name in ops if len(after.inputs.get(name, ())) != len(before.inputs.get(name, ()))]
        if missed:
            raise Failure('the network does not call it by its name alone, but keeps it in a list or elsewhere', missed)
        guilty = {name: moved for name in ops
                  if self._moved(before.inputs[name], after.inputs[name]) <= self.tolerance
                  for moved in [self._moved(before.outputs.get(name, ()), after.outputs.get(name, ()))]
                  if not moved <= self.tolerance}
        if guilty:
            worst = max(guilty.values())
            raise Failure(f'tried on a copy: {state}, its output is another (moved by {worst:.1g})', list(guilty))
        moved = self._moved(before.result, after.result)
        if not moved <= self.tolerance:
            raise Failure(f'tried on a copy: {state}, the output of the network is another (moved by {moved:.1g})')

    @staticmethod
    def _moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
        """Largest difference relative to the largest value; infinite where shapes differ."""
        if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
            return float('inf')
        pairs = [(x.double(), y.double()) for x, y in zip(before, after) if x.numel() and not x.is_complex()]
        return max((float((x - y).abs().max() / x.abs().max().clamp(min=1e-30)) for x, y in pairs), default=0.0)


@torch.no_grad()
def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics, gammas and betas for norms; random numbers for other parameters that are about zero."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: Optional[Tensor], low: float, high: float) -> None:
        if tensor is not None:
            tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))

    for module in model.modules():
        if isinstance(module, _BatchNorm):
            fill(module.running_mean, -.3, .3)
            fill(module.running_var, .5, 2)
            fill(module.weight, .5, 1.5)
            fill(module.bias, -.3, .3)
        else:
            for parameter in module._parameters.values():
                if parameter is not None and parameter.is_floating_point() and _shows_nothing(parameter):
                    fill(parameter, -.2, .2)
    return model


def _shows_nothing(parameter: Tensor) -> bool:
    """Whether it is about zero, as layer scales and offsets are at first, or what the memory was."""
    largest = float(parameter.abs().max()) if parameter.numel() else 1.0
    return not (1e-3 if parameter.dim() < 2 else 1e-5) <= largest < 1e6


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return type(value)(_cloned(item) for item in value) if type(value) in (list, tuple) else value


def _seed_all() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
