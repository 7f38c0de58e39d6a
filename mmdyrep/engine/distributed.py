"""Training in several processes: all ranks hold the same network before and after every change."""
import hashlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.dist import all_gather_object, all_reduce, broadcast_object_list, get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mmdyrep.reparam import Block

from .loops import epoch_length

# integers that hold the bits of a floating-point number, by its size in bytes
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


# ---------------------------------------------------------------------- agreement

def from_first_rank(value: Any) -> Any:
    """The first rank's value, on all ranks; it must be picklable."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def true_on_all(value: bool) -> bool:
    """Whether something is true on every rank."""
    if get_world_size() == 1:
        return value
    flag = torch.tensor(int(value))
    all_reduce(flag, 'min')
    return bool(flag)


def greatest(values: Sequence[float]) -> List[float]:
    """The greatest of all ranks, number by number."""
    if get_world_size() == 1:
        return list(values)
    table = torch.tensor(list(values), dtype=torch.float64)
    all_reduce(table, 'max')
    return table.tolist()


@torch.no_grad()
def mean_statistics(models: Sequence[nn.Module]) -> None:
    """Give every rank the mean over ranks of all batch norms' running statistics, in one communication.

    Each rank gathers its own from its own images. Weights that are computed from them (Rep by hand, Dep, fusing) would
    differ otherwise, and a resumed run, which starts from the first rank's, would not be exact.

    Args:
        models (Sequence[nn.Module]): Changed in place; they have the same structure on all ranks.
    """
    if get_world_size() == 1:
        return
    buffers = [buffer for model in models for _, norm in _norms(model) for buffer in norm.buffers()
               if buffer.is_floating_point()]
    if not buffers:
        return
    table = torch.cat([buffer.flatten().to(buffers[0].device, torch.float64) for buffer in buffers])
    all_reduce(table, 'mean')
    for buffer, mean in zip(buffers, table.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(mean.view_as(buffer))


def check_agreement(models: Sequence[nn.Module], when: str) -> None:
    """Refuse to go on with ranks that differ in structure, parameters or batch norm statistics, in any bit.

    Takes one communication of two numbers, and the details only where ranks differ.

    Args:
        models (Sequence[nn.Module]): The model and averaged copies of it.
        when (str): For the message, 'after the update of epoch 5'.

    Raises:
        RuntimeError: With the first tensor that differs; on all ranks.
    """
    if get_world_size() == 1:
        return
    sums = _checksums(models)
    digest = hashlib.sha256(repr(list(sums.items())).encode()).digest()
    number = int.from_bytes(digest[:7], 'big')
    extremes = torch.tensor([number, -number])
    all_reduce(extremes, 'max')
    if extremes[0] == -extremes[1]:
        return
    tables: List[Dict[str, Tuple]] = all_gather_object(sums)
    raise RuntimeError(f'DyRep: the ranks hold different networks {when}: {_first_difference(tables)}. They must get '
                       'the same gradients and start from the same weights: leave wrapping the model to the runner, '
                       'and let no hook change weights on some ranks only')


def _norms(model: nn.Module) -> Iterator[Tuple[str, _BatchNorm]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm))


def _tensors(model: nn.Module) -> Iterator[Tuple[str, Tensor]]:
    """Parameters, and the buffers that an update changes; others may be each rank's own."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        if isinstance(module, (_BatchNorm, Block)):
            for key, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    yield f'{name}.{key}', buffer


def _checksums(models: Sequence[nn.Module]) -> Dict[str, Tuple]:
    """Shape and checksum of each tensor, by its name."""
    named = [(f'averaged model: {name}' if i else name, tensor)
             for i, model in enumerate(models) for name, tensor in _tensors(model)]
    if not named:
        return {}
    sums = torch.stack([_checksum(tensor).to(named[0][1].device) for _, tensor in named]).tolist()
    return {name: (tuple(tensor.shape), value) for (name, tensor), value in zip(named, sums)}


def _checksum(tensor: Tensor) -> Tensor:
    bits = tensor.detach().contiguous().view(_BITS[tensor.element_size()]).flatten().long()
    # odd factors: any change of one element changes the sum modulo 2 ** 64
    return (bits * torch.arange(1, 2 * len(bits), 2, device=bits.device)).sum()


def _first_difference(tables: Sequence[Dict[str, Tuple]]) -> str:
    for rank, table in enumerate(tables):
        for name, (shape, value) in tables[0].items():
            if name not in table:
                return f'{name} is missing on rank {rank}'
            if table[name] != (shape, value):
                return f'{name} of rank {rank} is not that of rank 0'
        extra = [name for name in table if name not in tables[0]]
        if extra:
            return f'{extra[0]} of rank {rank} is missing on rank 0'
    return 'the order of the parameters'


# ---------------------------------------------------------------------- the wrapper

def check_wrapper(runner: Runner) -> None:
    """Refuse parallel wrappers other than DistributedDataParallel around the whole model.

    Raises:
        ValueError: With the wrapper and what to use instead.
    """
    if type(runner).__name__ == 'FlexibleRunner':
        raise ValueError('DyRepHook does not work with FlexibleRunner: its strategies (FSDP, DeepSpeed, ColossalAI) '
                         'shard or move the parameters that DyRep replaces. Use Runner, with DDP for several GPUs')
    model = runner.model
    if not is_model_wrapper(model):
        return
    if not isinstance(model, DistributedDataParallel) or is_model_wrapper(model.module) or any(
            is_model_wrapper(part) for part in model.module.children()):
        raise ValueError(f'DyRepHook does not work with {type(model).__name__}: DyRep replaces parameters during '
                         'training, so they must not be sharded (FSDP) or wrapped in parts. Set '
                         "model_wrapper_cfg=dict(type='MMDistributedDataParallel', ...) or leave it out")


def check_lengths(runner: Runner) -> None:
    """Refuse an epoch loop whose ranks have different numbers of batches: DDP would hang or mix up iterations."""
    lengths = all_gather_object(epoch_length(runner))
    if len(set(lengths)) > 1:
        raise ValueError(f'DyRepHook: the ranks have {lengths} batches an epoch, DistributedDataParallel needs the '
                         'same number on each: use DefaultSampler with round_up=True, or train by iterations')


def remember_comm_hook(runner: Runner) -> None:
    """Note the communication hook that is registered from now on, so that `wrap_anew` can set it again.

    Raises:
        ValueError: If one is there already: DistributedDataParallel does not tell which.
    """
    wrapper = runner.model
    if not isinstance(wrapper, DistributedDataParallel) or 'register_comm_hook' in vars(wrapper):
        return
    there = wrapper._get_ddp_logging_data().get('comm_hook')
    if there:
        raise ValueError(f'DyRepHook: the communication hook {there} was registered before the run began and could not '
                         'be set again when the structure changes; register it in before_train of a hook')
    wrapper.register_comm_hook = _Noting(wrapper.register_comm_hook)  # type: ignore[method-assign]


class _Noting:
    """``register_comm_hook`` that keeps what was registered."""

    def __init__(self, register: Callable) -> None:
        self.register = register
        self.registered: Optional[Tuple[Any, Callable]] = None

    def __call__(self, state: Any, hook: Callable) -> None:
        self.register(state, hook)
        self.registered = (state, hook)


def wrap_anew(runner: Runner) -> None:
    """Wrap the model as the runner does, so that gradients of its new parameters are reduced over ranks.

    DistributedDataParallel copies the first rank's parameters to all: check that they agree before.
    """
    wrapper = runner.model
    if not isinstance(wrapper, DistributedDataParallel):
        return
    # this attribute and the wrapper hold each other; the old reducer shall be freed at once
    noting = vars(wrapper).pop('register_comm_hook', None)
    registered = noting.registered if noting is not None else None
    runner.model = wrapper.module
    del wrapper, noting
    runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), runner.model)
    runner.model.train()
    remember_comm_hook(runner)
    if registered is not None:
        state, hook = registered
        _forget_buckets(state)
        runner.model.register_comm_hook(state, hook)


def _forget_buckets(state: Any) -> None:
    """Let PowerSGD begin anew: what it keeps has the shapes of the old buckets."""
    if type(state).__name__ == 'PowerSGDState':
        for table in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            table.clear()
        state.iter = 0


# ---------------------------------------------------------------------- moments

def saves_after_iteration(runner: Runner) -> bool:
    """Whether a checkpoint that counts iterations is saved at the end of this one."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
    return any(hook.every_n_train_iters(runner, hook.interval, hook.save_begin) or (
        hook.save_last and hook.is_last_train_iter(runner)) for hook in hooks)
