"""A training that runs out of memory says what DyRep has to do with it."""
from functools import wraps
from typing import Any, Callable, Dict, cast

import torch
from mmengine.runner import Runner

from .history import History

# of PyTorch's allocators, cuDNN and cuBLAS
_SIGNS = ('out of memory', "can't allocate memory", 'ALLOC_FAILED')


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on a GPU or on the CPU."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS))


def explain_out_of_memory(runner: Runner, history: Callable[[], History]) -> None:
    """Let an iteration that runs out of memory name the last growth; call it in ``before_train``.

    The loop's iteration is watched, not the model's step, which a new wrapper around the model or a compiled step
    would replace. Without any growth the error stays as it is. A second call does nothing.

    Args:
        runner (Runner): With a loop that has ``run_iter``; others are left alone.
        history (callable): Gives the history of the run.
    """
    loop = runner.train_loop
    run_iter = getattr(loop, 'run_iter', None)
    if run_iter is None or hasattr(run_iter, 'wrapped_by_mmdyrep'):
        return

    @wraps(run_iter)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return run_iter(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            # an update says itself which op it was about
            if not ran_out_of_memory(error) or str(error).startswith('DyRep:'):
                raise
            growth = _last_growth(history(), runner.iter)
            if not growth:
                raise
            kind = torch.cuda.OutOfMemoryError if isinstance(error, torch.cuda.OutOfMemoryError) else RuntimeError
            raise kind(f'{error}\n{growth}') from error

    wrapper.wrapped_by_mmdyrep = True  # type: ignore[attr-defined]
    loop.run_iter = wrapper


def _last_growth(history: History, iteration: int) -> str:
    """What has grown last, and what to do if it is too much; nothing without a growth."""
    entry = next((entry for entry in reversed(history.updates) if entry['grown']), None)
    if entry is None:
        return ''
    settings = history.settings
    when = f'epoch {entry["epoch"]}' if settings.get('by_epoch', True) else f'iteration {entry["iter"]}'
    grown = ' and '.join(f'expanded {item["op"]} by {", ".join(item["branches"])}' for item in entry['grown'])
    start = cast(Dict[str, Any], history.start)
    times = history.updates[-1]['macs']['backbone'] / max(1, start['macs']['backbone'])
    return (f'DyRep: out of memory in iteration {iteration + 1}, {iteration + 1 - entry["iter"]} after the update of '
            f'{when}, which {grown}; the backbone takes {times:.2f} times the MACs that the run began with. '
            'Go on from the last checkpoint with --resume and a smaller batch (train_dataloader.batch_size). Or let '
            f'the network grow less: set max_macs_ratio of DyRepHook, now {settings.get("max_macs_ratio")}, and '
            '--resume from a checkpoint before that update')
