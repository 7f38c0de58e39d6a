"""Checkpoints read without running what somebody may have put into them."""
import pickle
import re
from collections import Counter, defaultdict, deque
from typing import Any, Callable, Dict, List, Tuple, Union

import torch

_TAKES_NAMES = torch.__version__ >= (2, 6)  # type: ignore[operator]  # is compared as a version
_NUMBERS = ('bool', 'uint8', 'int8', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64')


class UnsafeContent(ValueError):
    """Something in a file that could run code when it is read."""


def harmless_types() -> Dict[str, Any]:
    """Types and functions that are allowed in checkpoints besides PyTorch's own, by the names in the file."""
    import codecs

    import numpy as np
    from mmengine.logging import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
    found = {f'{kind.__module__}.{kind.__qualname__}': kind for kind in (
        HistoryBuffer, OneCycleParamScheduler, np.ndarray, np.dtype, *(type(np.dtype(name)) for name in _NUMBERS),
        Counter, defaultdict, deque)}
    found['builtins.set'] = found['__builtin__.set'] = set
    found['_codecs.encode'] = codecs.encode
    found['builtins.getattr'] = found['__builtin__.getattr'] = _method
    # how numpy writes arrays and numbers; it has renamed its core in version 2
    for value, name in ((np.zeros(1), '_reconstruct'), (np.float64(0), 'scalar')):
        for core in ('core', '_core'):
            found[f'numpy.{core}.multiarray.{name}'] = value.__reduce__()[0]
    return found


def _method(owner: Any, name: str) -> Any:
    """``getattr`` for the statistics of a log buffer and the curves of a OneCycle schedule, and for nothing else."""
    from mmengine.logging import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
    if not (owner is HistoryBuffer and not name.startswith('_')) and not (
            owner is OneCycleParamScheduler and name in ('_annealing_cos', '_annealing_linear')):
        raise UnsafeContent('getattr')
    return getattr(owner, name)


def allow_harmless_types() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read checkpoints of mmengine.

    mmengine 0.10 could not resume from its own there. Earlier versions of torch take no names of our choice, and
    need none: mmengine's ``torch.load`` reads anything.
    """
    if _TAKES_NAMES:
        named: List[Union[Callable[..., Any], Tuple[Callable[..., Any], str]]] = [
            (kind, name) for name, kind in harmless_types().items()]
        torch.serialization.add_safe_globals(named)  # type: ignore[attr-defined]  # torch 2.1 has none


def load_harmless(path: Any) -> Any:
    """``torch.load`` to the CPU of nothing but tensors, plain Python and the types above, in any version of torch.

    Raises:
        UnsafeContent: With the name of what else the file holds.
    """
    if not _TAKES_NAMES:
        return torch.load(path, map_location='cpu', pickle_module=_Harmless)
    allow_harmless_types()
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        strange = re.search(r'GLOBAL ([\w.]+)', str(error))
        if strange is None:
            raise
        raise UnsafeContent(strange[1]) from error


class _Unpickler(pickle.Unpickler):
    """Refuses every name that is not known to be harmless."""

    def find_class(self, module: str, name: str) -> Any:
        from torch._weights_only_unpickler import _get_allowed_globals
        full = f'{module}.{name}'
        if full in _get_allowed_globals():
            return super().find_class(module, name)
        if full in (harmless := harmless_types()):
            return harmless[full]
        raise UnsafeContent(full)


class _Harmless:
    """What ``torch.load`` takes from a ``pickle_module``."""

    Unpickler = _Unpickler
    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """As ``pickle.load``."""
        return _Unpickler(file, **options).load()
