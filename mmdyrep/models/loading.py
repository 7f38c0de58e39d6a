"""The structure that a state dict brings, set before its tensors go in."""
import os
from typing import Any, Dict, Iterable, Optional

from torch import nn

from mmdyrep.fileio import read_checkpoint
from mmdyrep.reparam import Block, Statistics, StructureError, blocks_of, depth_of, ops_in_keys
from mmdyrep.reparam.kernels import Kernel
from mmdyrep.reparam.structure import root_of


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
    mine = [key for key in keys if '.branches.' in key and (
        root_of(key) in eligible or f'{root_of(key)}.branches.kxk.bn.weight' in keys)]
    found = ops_in_keys(mine)
    strange = [name for name in found if root_of(name) not in eligible]
    if strange:
        raise StructureError(f'the state dict has a block at {strange[0]}, where this backbone has no op that can '
                             'be expanded; is it of another architecture?')
    current = {name: list(block.branches) for name, block in blocks_of(model).items()}
    brought = {root_of(name) for name in found}
    plain = {root_of(name) for name in current if f'{root_of(name)}.weight' in keys}
    kept = {name: branches for name, branches in current.items()
            if root_of(name) not in brought and (pinned and not found or root_of(name) not in plain)}
    return {'version': 1, 'ops': {**kept, **found}}


def take_plain_weights(model: nn.Module, state_dict: Dict[str, Any], prefix: str,
                       behind: Dict[str, Optional[str]]) -> None:
    """Put the plain convolutions of a state dict into the blocks of a model, corrected by Eq. 6.

    The blocks' originals are set so that the function is that of the file; the keys of the plain
    convolutions are replaced by those of the blocks, for whoever loads them next.

    Args:
        model (nn.Module): The wrapped backbone.
        state_dict (dict): Changed in place.
        prefix (str): Of the backbone's keys.
        behind (dict): Batch norms behind the ops.
    """
    for name, block in blocks_of(model).items():
        weight = state_dict.get(f'{prefix}{name}.weight')
        if depth_of(name) or weight is None:
            continue
        if weight.shape != block.original_conv().weight.shape:
            continue  # the loader reports the key and both shapes
        _assign(block, state_dict, prefix + name, prefix + (behind[name] or ''), model, behind[name])
        for key in ('weight', 'bias'):
            state_dict.pop(f'{prefix}{name}.{key}', None)
        state_dict.update({f'{prefix}{name}.{key}': value.clone() for key, value in block.state_dict().items()})


def _assign(block: Block, state_dict: Dict[str, Any], op: str, norm: str, model: nn.Module,
            norm_name: Optional[str]) -> None:
    device = block.scale.device
    weight = state_dict[f'{op}.weight'].to(device).double()
    bias = state_dict.get(f'{op}.bias')
    bias = weight.new_zeros(len(weight)) if bias is None else bias.to(device).double()
    statistics = None
    if norm_name:
        module = model.get_submodule(norm_name)
        mean = state_dict.get(f'{norm}.running_mean', module.running_mean).to(device)
        var = state_dict.get(f'{norm}.running_var', module.running_var).to(device)
        statistics = Statistics(mean.double() - bias, var)
    block.assign(Kernel(weight, bias), statistics, rescale=statistics is not None)


def local_state(init_cfg: Any) -> Optional[Dict[str, Any]]:
    """State dict of a local file that ``init_cfg`` names, without its prefix; None if there is no such file."""
    cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    for cfg in cfgs:
        if isinstance(cfg, dict) and cfg.get('type') in ('Pretrained', 'PretrainedInit'):
            path = cfg.get('checkpoint')
            if isinstance(path, (str, os.PathLike)) and os.path.isfile(path):
                state = read_checkpoint(path)['state_dict']
                prefix = prefix_of(state, cfg.get('prefix'))
                return {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
    return None


def prefix_of(keys: Iterable[str], wanted: Optional[str] = None) -> str:
    """Prefix of the backbone's keys in a file: the one asked for, else ``backbone.`` where keys have it."""
    if wanted:
        return wanted if wanted.endswith('.') else wanted + '.'
    return 'backbone.' if any(key.startswith('backbone.') for key in keys) else ''
