"""What keeps the processes of a training one network; without others everything here does nothing."""
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import torch
from mmengine.dist import all_reduce, broadcast_object_list, get_comm_device, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def check_wrapper(model: nn.Module) -> None:
    """Refuse parallel wrappers other than DDP.

    Raises:
        ValueError: With the name of the wrapper.
    """
    if is_model_wrapper(model) and not isinstance(model, DistributedDataParallel):
        raise ValueError(f'DyRepHook does not work with {type(model).__name__}: it shards or regroups the parameters '
                         'that DyRep replaces. Use MMDistributedDataParallel (the default), or train without DyRep')
    if get_world_size() > 1 and not is_model_wrapper(model):
        raise ValueError('DyRepHook: there are several processes, but the model is not wrapped by DDP')


def from_first(value: Any) -> Any:
    """The value that the first process has, any that can be pickled."""
    if get_world_size() == 1:
        return value
    box = [value]
    broadcast_object_list(box)
    return box[0]


def everywhere(flag: bool) -> bool:
    """Whether it is true in all processes."""
    if get_world_size() == 1:
        return flag
    count = torch.tensor(float(flag), device=get_comm_device())
    all_reduce(count, 'sum')
    return count.item() == get_world_size()


@torch.no_grad()
def share_statistics(models: Sequence[nn.Module]) -> None:
    """Give the batch norms of all processes the mean of their running statistics, in one communication.

    DDP leaves them to each process by mmengine's defaults. What Rep, Dep and fusing compute from them would come
    out different in each.
    """
    if get_world_size() == 1:
        return
    buffers = [buffer for model in models for module in model.modules() if isinstance(module, _BatchNorm)
               for buffer in (module.running_mean, module.running_var) if buffer is not None]
    table = torch.cat([buffer.double().flatten() for buffer in buffers])
    all_reduce(table, 'mean')
    for buffer, part in zip(buffers, table.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(part.view_as(buffer))


def _tensors(models: Sequence[nn.Module]) -> Iterator[Tuple[str, Tensor]]:
    for model in models:
        yield from model.named_parameters()
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                yield f'{name}.running_mean', module.running_mean
                yield f'{name}.running_var', module.running_var


@torch.no_grad()
def require_agreement(models: Sequence[nn.Module], structure: Dict[str, Any]) -> None:
    """Make sure that all processes have the same structure, weights and statistics.

    Raises:
        RuntimeError: If they do not, with the first name that differs.
    """
    if get_world_size() == 1:
        return
    if not everywhere(from_first(structure) == structure):
        raise RuntimeError('DyRep: the processes have come to different structures; were they started with the same '
                           'config and the same version of mmdyrep?')
    names: List[str] = []
    sums: List[Tensor] = []
    for name, tensor in _tensors(models):
        names.append(name)
        sums.append(tensor.detach().double().nan_to_num().sum())
    lowest, highest = torch.stack(sums), torch.stack(sums)
    all_reduce(lowest, 'min')
    all_reduce(highest, 'max')
    different = (lowest != highest).nonzero().flatten().tolist()
    if different:
        raise RuntimeError(f'DyRep: {names[different[0]]} has different values in the processes after an update, '
                           f'as have {len(different) - 1} others. Was a parameter changed in one of them alone?')


def wrap_anew(runner: Runner) -> None:
    """Wrap the model by DDP again, by the runner's own rules: the old reducer knows the old parameters.

    A communication hook that was registered is registered again; the mode of the model is kept.
    """
    old = runner.model
    if not is_model_wrapper(old):
        return
    model, training, hooks = old.module, old.training, list(getattr(old, '_comm_hooks', []))
    # its reducer has to go first
    runner.model = model
    del old
    runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
    for hook, state in hooks:
        runner.model.register_comm_hook(state, hook)
    runner.model.train(training)
