"""A checkpoint of another code as one of a model with a DyRepBackbone, compared block by block before it is written."""
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, cast

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmdyrep.deploy.fusing import load_strictly
from mmdyrep.deploy.plain_config import bare_config
from mmdyrep.fileio import PathLike, read_checkpoint, write_checkpoint
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.building import build_model
from mmdyrep.models.finding import find_backbone
from mmdyrep.reparam import Block, Geometry
from mmdyrep.reparam.kernels import Kernel
from mmdyrep.version import __version__

from .blocks import identity_norm, to_state, without_bias
from .layouts import ForeignBlock, run, split
from .names import Rule, best_table, parse_rules, renamed

# Largest difference of a block's outputs over their largest value, in float64; the weights are float32.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Report:
    """What was converted and how well it agrees.

    Args:
        layouts (dict): Number of blocks of each kind.
        structure (dict): Structure of the converted model.
        absorbed (int): Branches without a place in our block, absorbed by the original.
        difference (float): Largest difference of a block's outputs over their largest value.
    """

    layouts: Dict[str, int]
    structure: Dict[str, Any]
    absorbed: int
    difference: float


def convert_checkpoint(config: Config, checkpoint: PathLike, out: PathLike, *, key: Optional[str] = None,
                       rename: Sequence[str] = ()) -> Report:
    """Write a checkpoint of DyRep's authors, of DBB or of RepVGG as one that the model of a config loads.

    Blocks become blocks of ours, with their branches; what is plain stays plain. Where the other code has no norm
    behind its blocks, ours is the identity. Each block's output is compared with what the other code computes.

    Args:
        config (Config): With a DyRepBackbone of the same network; structure and ``static`` do not matter.
        checkpoint (str): Of the other code, augmented or fused.
        out (str): Where to write; replaced whole or not at all.
        key (str, optional): Entry of the file that holds the state dict. Defaults to the first of ``state_dict``,
            ``model`` that it has, else the file itself.
        rename (Sequence[str]): ``PATTERN=NEW`` for the beginnings of names, in place of the tables for torchvision's,
            DBB's, RepVGG's and mmpretrain's networks.

    Returns:
        Report: What was done.

    Raises:
        ValueError: If config and checkpoint don't fit or outputs differ; no file has been written.
        FileNotFoundError: If there is no checkpoint.
    """
    if Path(checkpoint).resolve() == Path(out).resolve():
        raise ValueError(f'checkpoint and output must be different files, got {out} twice')
    source = read_checkpoint(checkpoint, key, known=('state_dict', 'model'))['state_dict']
    blocks, tensors = split({name.removeprefix('module.'): value for name, value in source.items()})
    model = build_model(bare_config(config))
    if any(value.dtype == torch.float64 for value in source.values()):
        model.double()
    prefix, backbone = find_backbone(model)
    prefix += '.' if prefix else ''
    behind = {prefix + op: norm and prefix + norm for op, norm in backbone.survey.ops.items()}
    rules: Sequence[Rule] = parse_rules(rename) or best_table([*blocks, *tensors], [*behind, *model.state_dict()])

    ours = {renamed(root, rules): (root, block) for root, block in blocks.items()}
    strange = [f'{root} (here {name})' for name, (root, _) in ours.items() if name not in behind]
    if strange:
        raise ValueError(f'{checkpoint} has a block at {strange[0]}, where {type(backbone).__name__} has no op that '
                         'can be expanded. Is it of another network? Names can be replaced: --rename PATTERN=NEW')
    geometries = {name: Geometry.of(cast(nn.Conv2d, model.get_submodule(name))) for name in ours}
    state = {renamed(name, rules): value for name, value in tensors.items()}
    absorbed: Dict[str, List[Kernel]] = {}
    for name, (_, block) in ours.items():
        entries, absorbed[name] = to_state(block, name, geometries[name])
        state.update(entries)
    _complete(state, model, behind)
    load_strictly(model, state, f'{checkpoint} does not fit the model of {config.filename or "the config"}')
    for name, kernels in absorbed.items():
        for kernel in kernels:
            cast(Block, model.get_submodule(name)).absorb(kernel)

    found = {name: block for name, (_, block) in ours.items()}
    difference = _compare(model, backbone, prefix, found, geometries, checkpoint)
    names = [block.layout for block in found.values()]
    report = Report({name: names.count(name) for name in dict.fromkeys(names)}, backbone.structure,
                    sum(map(len, absorbed.values())), difference)
    write_checkpoint(out, {'meta': {'mmdyrep': {'version': __version__, 'source': Path(checkpoint).name}},
                           'state_dict': model.state_dict()})
    return report


def _complete(state: Dict[str, Tensor], model: nn.Module, behind: Mapping[str, Optional[str]]) -> None:
    """Norms that the file has not get the identity's values; they take in biases without a place."""
    plain = model.state_dict()
    for op, norm in behind.items():
        if norm is None:
            continue
        like = state.get(f'{op}.scale', state.get(f'{op}.weight'))
        if f'{norm}.weight' not in state and like is not None:
            channels = like if like.dim() == 1 else like[:, 0, 0, 0]
            state.update({f'{norm}.{key}': value for key, value in identity_norm(
                model.get_submodule(norm), channels).items()})
        if f'{op}.bias' in state and f'{op}.bias' not in plain:
            state[f'{norm}.running_mean'] = without_bias(state[f'{norm}.running_mean'], state.pop(f'{op}.bias'))


@torch.no_grad()
def _compare(model: nn.Module, backbone: DyRepBackbone, prefix: str, blocks: Mapping[str, ForeignBlock],
             geometries: Mapping[str, Geometry], path: PathLike) -> float:
    """Largest difference of the blocks' outputs over their largest value, on random maps in float64.

    Raises:
        ValueError: If it is too large, with the name of the block.
    """
    model.eval()
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for name, block in blocks.items():
        geometry = geometries[name]
        size = [2 * k + 5 for k in geometry.kernel_size]
        x = torch.randn(2, geometry.in_channels, *size, generator=generator, dtype=torch.float64)
        wanted = run(block, x, geometry)
        difference = float((copy.deepcopy(model.get_submodule(name)).double()(x) - wanted).abs().max()
                           / wanted.abs().max())
        if not difference <= TOLERANCE:
            raise ValueError(f'{name}: the converted block differs by {difference:.2e} of the largest value from what '
                             f'{path} computes ({TOLERANCE} is allowed); nothing has been written')
        worst = max(worst, difference)
    return worst
