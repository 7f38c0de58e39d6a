"""A checkpoint of the plain network, made from an augmented one and checked before it is written."""
import copy
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn

from mmdyrep.cli import set_loader_defaults
from mmdyrep.dynamics import drift
from mmdyrep.dynamics.calibration import tensors_in
from mmdyrep.engine.costs import counting_shape
from mmdyrep.fileio import PathLike, atomic_path, read_checkpoint, write_checkpoint
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.building import build_model
from mmdyrep.models.finding import find_backbone, is_classifier
from mmdyrep.models.probing import zeros
from mmdyrep.version import __version__

from .plain_config import bare_config, plain_config

# Largest difference over the largest value; float32 rounding stays far below it.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Report:
    """What was fused and how well it agrees.

    Args:
        structure (dict): Structure that the checkpoint had.
        compared (str): Which outputs were compared on what.
        difference (float): Their largest difference, absolute.
        relative (float): The same over the largest value.
    """

    structure: Dict[str, Any]
    compared: str
    difference: float
    relative: float


def fuse_checkpoint(config: Config, checkpoint: PathLike, out: PathLike, *, out_config: Optional[PathLike] = None,
                    backbone_only: bool = False, raw_weights: bool = False, images: int = 0) -> Report:
    """Write the checkpoint of the plain network that an augmented one is equivalent to.

    It is loaded into the plain network with ``strict=True`` and both are compared before a file is written.

    Args:
        config (Config): Of the training, with its DyRepBackbone.
        checkpoint (str): Augmented or plain.
        out (str): Where to write; replaced whole or not at all.
        out_config (str, optional): Where to write the config of the plain network, a Python file.
        backbone_only (bool): Write the backbone alone, without prefix, as ``init_cfg`` takes it.
        raw_weights (bool): Of a training with EMA the weights themselves instead of their average.
        images (int): Images of the config's test set to compare on. Defaults to 0: random input.

    Returns:
        Report: How well they agree.

    Raises:
        ValueError: If config and checkpoint don't fit or the outputs differ; no file has been written.
        FileNotFoundError: If there is no checkpoint.
    """
    if out_config is not None and Path(out_config).suffix != '.py':
        raise ValueError(f'the plain config is a Python file, give a name that ends in .py, not {out_config}')
    paths = [Path(path).resolve() for path in (checkpoint, out, out_config) if path is not None]
    if len(set(paths)) < len(paths):
        raise ValueError(f'checkpoint and outputs must be different files, got {", ".join(map(str, paths))}')
    source = read_checkpoint(checkpoint)
    _require_found(source, checkpoint)
    state = weights_of(source, raw_weights, checkpoint)
    init_default_scope(config.get('default_scope', 'mmengine'))
    plain_cfg = plain_config(config)
    model = _load(bare_config(config), state, checkpoint)
    name, backbone = find_backbone(model)
    structure = backbone.structure

    fused = copy.deepcopy(model)
    find_backbone(fused)[1].switch_to_deploy()
    plain = build_model(plain_cfg)
    load_strictly(plain, fused.state_dict(), 'the plain network of the config does not take the fused weights')

    x, described = _images(plain_cfg, plain, images) if images else _noise(backbone)
    model.eval()
    plain.eval()
    what, before, after = _outputs(model, plain, name, x)
    relative = drift(before, after)
    if not relative <= TOLERANCE:
        raise ValueError(f'the fused network does not agree with {checkpoint}: its {what} differ by {relative:.2e} '
                         f'of the largest value on {described} ({TOLERANCE} is allowed); nothing has been written. '
                         f'Are there NaN or infinite values in the checkpoint{_own_form(plain.get_submodule(name))}?')
    difference = max((first - second).abs().max().item() for first, second in zip(before, after))
    report = Report(structure, f'{what} on {described}', difference, relative)

    weights = plain.get_submodule(name).state_dict() if backbone_only else plain.state_dict()
    meta = _meta(source.get('meta', {}), plain_cfg, checkpoint, raw_weights, report)
    if out_config is not None:
        with atomic_path(out_config) as temporary:
            temporary.write_text(plain_cfg.pretty_text, encoding='utf-8')
    write_checkpoint(out, {'meta': meta, 'state_dict': weights})
    return report


def _require_found(checkpoint: Dict[str, Any], path: PathLike) -> None:
    """Refuse a network whose branches are still searched: it has more of them than it is evaluated with."""
    saved = checkpoint.get('dyrep')
    search = saved.get('repnas') if isinstance(saved, dict) else None
    if isinstance(search, dict) and search.get('architecture') is not None:
        raise ValueError(f'{path} is of a search that is not over (RepNASHook): which of its branches stay is not '
                         'known yet, and they all would be fused. Fuse a checkpoint from after the search')


def weights_of(checkpoint: Dict[str, Any], raw: bool, path: PathLike) -> Dict[str, Tensor]:
    """State dict of a checkpoint; mmengine's EMAHook puts the averaged weights there, the raw ones aside.

    Raises:
        ValueError: If raw weights are asked for where there is no average.
    """
    state = dict(checkpoint['state_dict'])
    if raw:
        aside = checkpoint.get('ema_state_dict')
        if aside is None:
            raise ValueError(f'{path} was written without EMA, its weights are the raw ones: leave out --raw-weights')
        # EMAHook exchanges these two when it saves
        state.update({key[len('module.'):]: value for key, value in aside.items() if key.startswith('module.')})
    return state


def _load(cfg: Config, state: Dict[str, Tensor], path: PathLike) -> nn.Module:
    model = build_model(cfg)
    load_strictly(model, state, f'{path} does not fit the model of {cfg.filename or "the config"}')
    return model


def load_strictly(model: nn.Module, state: Dict[str, Tensor], message: str) -> None:
    """Load a state dict that must fit.

    Raises:
        ValueError: With the message and a few of the keys that do not fit.
    """
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f'{message}: {_shortened(str(error))}') from error


def _shortened(message: str, most: int = 5) -> str:
    """torch's list of keys that do not fit, a few of each kind."""
    lines = []
    for line in message.splitlines()[1:]:
        head, _, keys = line.strip().partition(': ')
        names = re.findall(r'"([^"]+)"', keys)
        if head.startswith(('Missing', 'Unexpected')) and len(names) > most:
            keys = ', '.join(names[:most]) + f', ... ({len(names)} in all)'
        lines.append(f'{head}: {keys}')
    return '\n'.join(lines[:2 + most]) if lines else message


def _own_form(backbone: nn.Module) -> str:
    kind = type(backbone).__name__
    return f', or does the deploy form of {kind} compute something else than {kind}' \
        if hasattr(backbone, 'switch_to_deploy') else ''


def _noise(backbone: DyRepBackbone) -> Tuple[Tensor, str]:
    x = zeros(backbone, counting_shape(backbone))
    x = torch.randn((4, *x.shape[1:]), generator=torch.Generator().manual_seed(0)).to(x)
    return x, f'random input of shape {tuple(x.shape)}'


def _images(cfg: Config, model: nn.Module, wanted: int) -> Tuple[Tensor, str]:
    """Preprocessed images of the test set, as far as they have one size."""
    set_loader_defaults(cfg)
    loader = Runner.build_dataloader(copy.deepcopy(cfg.test_dataloader), seed=0)
    found: List[Tensor] = []
    for batch in loader:
        inputs = model.get_submodule('data_preprocessor')(batch, False)['inputs']
        if found and inputs.shape[1:] != found[0].shape[1:]:
            break
        found.append(inputs)
        if sum(map(len, found)) >= wanted:
            break
    x = torch.cat(found)[:wanted]
    return x, f'{len(x)} images of the test set'


@torch.no_grad()
def _outputs(model: nn.Module, plain: nn.Module, name: str, x: Tensor) -> Tuple[str, List[Tensor], List[Tensor]]:
    """What is compared, before and after, in portions that fit into memory."""
    if is_classifier(model):
        what, first, second = 'logits', model, plain
    else:
        what, first, second = 'feature maps of the backbone', model.get_submodule(name), plain.get_submodule(name)
    before: List[Tensor] = []
    after: List[Tensor] = []
    for part in x.split(64):
        before += tensors_in(first(part))
        after += tensors_in(second(part))
    return what, before, after


def _meta(meta: Dict[str, Any], cfg: Config, path: PathLike, raw: bool, report: Report) -> Dict[str, Any]:
    """What a user of the plain checkpoint wants to know: classes, config, and where it came from."""
    told = ('dataset_meta', 'CLASSES', 'PALETTE', 'epoch', 'iter', 'experiment_name', 'seed')
    kept: Dict[str, Any] = {key: meta[key] for key in told if key in meta}
    return {
        **kept,
        'cfg': cfg.pretty_text,
        'mmdyrep': {
            'version': __version__,
            'source': Path(path).name,
            'sha256': hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            'weights': 'raw' if raw else 'as saved',
            'structure': report.structure,
            'compared': report.compared,
            'difference': report.difference if math.isfinite(report.difference) else None,
            'relative': report.relative,
        },
    }
