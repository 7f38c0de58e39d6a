"""The structure that a state dict brings, set before its tensors go in."""
import copy
import os
import re
from typing import Any, Dict, Iterable, List, Optional, Sequence, cast

from mmengine.model import PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.fileio import NoStateDict, read_checkpoint
from mmdyrep.reparam import Block, Statistics, StructureError, blocks_of, ops_in_keys
from mmdyrep.reparam.kernels import Kernel
from mmdyrep.reparam.left_out import taken_over
from mmdyrep.reparam.structure import root_of, root_of_key
from mmdyrep.reparam.surgery import outer_blocks


def looks_augmented(keys: Iterable[str]) -> bool:
    """Whether any key is that of a block."""
    return any('.branches.kxk.bn.' in key for key in keys)


def target_structure(model: nn.Module, keys: Iterable[str], eligible: Iterable[str], pinned: bool) -> Dict[str, Any]:
    """Structure that a model shall have before a state dict with these keys is loaded.

    Ops that the file does not hold stay as they are; ops that are plain in the file become plain, but
    for pinned models, which keep their structure.

    Args:
        model (nn.Module): The wrapped backbone.
        keys (Iterable[str]): Keys of the file, from the backbone's root.
        eligible (Iterable[str]): Ops of the plain backbone that can be expanded.
        pinned (bool): Whether a plain file leaves the structure alone.

    Returns:
        dict: Structure, not yet checked against the model.

    Raises:
        StructureError: If the file has a block where this backbone can't have one, or an unknown branch.
    """
    keys, eligible = set(keys), set(eligible)
    # a network may have modules called `branches` of its own
    own = {name for name, _ in model.named_modules() if root_of(name, eligible) == name}
    roots = {key: root_of_key(key, eligible) for key in keys}
    mine = [key for key, root in roots.items() if root is not None and (
        root in eligible or f'{root}.branches.kxk.bn.weight' in keys and f'{root}.branches' not in own)]
    found = ops_in_keys(mine, eligible)
    strange = [name for name in found if root_of(name, eligible) not in eligible]
    if strange:
        raise StructureError(f'the state dict has a block at {strange[0]}, where this backbone has no op that can '
                             'be expanded; is it of another architecture?')
    current = {name: list(block.branches) for name, block in blocks_of(model).items()}
    within = {name: root_of(name, eligible) for name in [*current, *found]}
    brought = {within[name] for name in found}
    kept = {name: branches for name, branches in current.items() if within[name] not in brought and (
        pinned and not found or f'{within[name]}.weight' not in keys)}
    return {'version': 1, 'ops': {**kept, **found}}


def take_plain_weights(model: nn.Module, state_dict: Dict[str, Any], prefix: str, behind: Dict[str, Optional[str]],
                       report: Sequence[List[str]]) -> None:
    """Let the blocks of a model read a state dict of the plain network as their convolutions would, with Eq. 6.

    A plain convolution in the place of each block reads its part, so that what is missing, unexpected or of another
    shape is reported as in the plain network; what it has read, the block then computes. The keys of the convolution
    are replaced by those of the block, for whoever loads them next. Blocks that the state dict has are left out.

    Args:
        model (nn.Module): The wrapped backbone.
        state_dict (dict): Changed in place.
        prefix (str): Of the backbone's keys.
        behind (dict): Batch norms behind the ops.
        report (Sequence[list[str]]): Missing keys, unexpected keys and errors, as PyTorch's loader collects them.
    """
    keys = [key[len(prefix):] for key in state_dict if key.startswith(prefix)]
    in_file = {root_of_key(key, behind) for key in keys} & set(behind)
    for name, block in {} if in_file else outer_blocks(model).items():
        kernel = block.read(state_dict, f'{prefix}{name}.', *report)
        if kernel is not None:
            _assign(block, kernel, state_dict, prefix + (behind[name] or ''), model, behind[name])
        block.show(state_dict, f'{prefix}{name}.')


def _assign(block: Block, kernel: Kernel, state_dict: Dict[str, Any], norm: str, model: nn.Module,
            norm_name: Optional[str]) -> None:
    statistics = None
    if norm_name:
        module = model.get_submodule(norm_name)
        mean, var, count = (_buffer(module, state_dict, norm, key)
                            for key in ('running_mean', 'running_var', 'num_batches_tracked'))
        statistics = Statistics(mean.double() - kernel.bias, var)
        block.count(count)
    block.assign(kernel, statistics, rescale=statistics is not None)


def _buffer(module: nn.Module, state_dict: Dict[str, Any], prefix: str, key: str) -> Tensor:
    """Buffer that a module will have when the state dict has been loaded."""
    present, new = getattr(module, key), state_dict.get(f'{prefix}.{key}')
    return new.to(present.device) if isinstance(new, Tensor) and new.shape == present.shape else present


def take_norms(model: nn.Module, state_dict: Dict[str, Any], prefix: str, behind: Dict[str, Optional[str]]) -> None:
    """Let the blocks of a state dict take over what the norms behind them do, for a model that leaves those out.

    Args:
        model (nn.Module): The wrapped backbone, with the structure of the state dict.
        state_dict (dict): Changed in place, its tensors are not.
        prefix (str): Of the backbone's keys.
        behind (dict): Batch norms behind the ops.
    """
    for name in outer_blocks(model):
        norm = behind[name]
        if norm:
            eps = cast(_BatchNorm, model.get_submodule(norm)).eps
            state_dict.update(taken_over(state_dict, prefix + name, prefix + norm, eps))


def pretrained_cfgs(init_cfg: Any) -> List[Dict[str, Any]]:
    """Those of the one or more configs in ``init_cfg`` that load a file."""
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return [cfg for cfg in cfgs if isinstance(cfg, dict) and cfg.get('type') in ('Pretrained', PretrainedInit)]


def local_state(init_cfg: Any, model: nn.Module) -> Optional[Dict[str, Any]]:
    """State dict of a local file that ``init_cfg`` names, without its prefix; None if there is no such file."""
    for cfg in pretrained_cfgs(init_cfg):
        path = cfg.get('checkpoint')
        if isinstance(path, (str, os.PathLike)) and os.path.isfile(path):
            try:
                state = read_checkpoint(path)['state_dict']
            except NoStateDict:
                continue  # some backbones read formats of their own
            prefix = cfg.get('prefix') or prefix_of(state, model)
            prefix += '' if prefix.endswith('.') or not prefix else '.'
            if not prefix:
                # as mmengine does, for files of a model in a wrapper
                return {re.sub(r'^module\.', '', key): value for key, value in state.items()}
            return {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
    return None


def with_prefix(init_cfg: Any, model: nn.Module) -> Any:
    """Copy of ``init_cfg`` whose file, if its keys have the prefix ``backbone.``, is loaded by that prefix.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    init_cfg = copy.deepcopy(init_cfg)
    for cfg in pretrained_cfgs(init_cfg):
        if not cfg.get('prefix'):
            file = CheckpointLoader.load_checkpoint(cfg['checkpoint'], map_location='cpu', logger=None)
            prefix = prefix_of(file.get('state_dict', file), model)
            if prefix:
                cfg['prefix'] = prefix
    return init_cfg


def prefix_of(keys: Iterable[str], model: nn.Module) -> str:
    """``backbone.`` where the keys of a file have it and the model itself has no part of this name."""
    if any(name == 'backbone' for name, _ in model.named_children()):
        return ''
    found = (re.match(r'(module\.)?backbone\.', key) for key in keys)
    return next((match.group() for match in found if match), '')
