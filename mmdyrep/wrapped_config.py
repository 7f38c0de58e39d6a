"""The config of a training with DyRep, made from any config of an OpenMMLab library."""
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import LOOPS, init_default_scope
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mmdyrep.analysis.complexity import crop_size
from mmdyrep.deploy.plain_config import class_of, is_type
from mmdyrep.engine import DyRepHook, RandomStateHook
from mmdyrep.fileio import PathLike, atomic_path
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.building import build_model
from mmdyrep.models.finding import find_backbone

from .config_text import Plan, new_style, old_style

# updates in a training, if no interval is given: the paper's t = 5 for 120 epochs and t = 10 for 300
UPDATES = 24
# with this package's own settings the interval is a 15th, as in its studies, and there are four updates
RECOMMENDED_INTERVALS = 15


def wrap_config(source: str, out: PathLike, space: Union[str, Sequence[str]] = 'dyrep',
                interval: Optional[int] = None, input_shape: Optional[Sequence[int]] = None,
                recommended: bool = False) -> Plan:
    """Write a config that inherits from another one and trains it with DyRep.

    Args:
        source (str): Path of a config, in either of mmengine's styles, or a name as ``mmdet::...``.
        out (str or Path): The .py file to write.
        space (str or Sequence[str]): Operation space of ``DyRepBackbone``. Defaults to 'dyrep'.
        interval (int, optional): t, in epochs or iterations, as the training loop counts. Defaults to a 24th of the
            training, rounded to one digit.
        input_shape (Sequence[int], optional): H, W or C, H, W of the images, for backbones that take one size only.
            Defaults to the crop of the training pipeline where the usual sizes do not fit.
        recommended (bool): The settings of this package's own studies instead of the paper's: four updates, by default
            in the first 4/15 of the training. Defaults to False.

    Returns:
        Plan: What has been written.

    Raises:
        ValueError: If the config can't be wrapped, with the reason; nothing has been written.
        FileNotFoundError: If there is no such config.
    """
    out = Path(out)
    if out.suffix != '.py':
        raise ValueError(f'the config to write is a Python file, give a name that ends in .py, not {out}')
    if out.exists():
        raise ValueError(f'{out} exists already; remove it or give another name')
    cfg = _read(source)
    place = _place_of_backbone(cfg, source)
    _check_hooks(cfg, source)
    by_epoch, interval = _schedule(cfg, source, interval, recommended)
    # by a name, too, it may be one of the newer style
    lazy = Config._is_lazy_import(cfg.filename)
    plan = Plan(
        source=cfg.filename if lazy else source, out=out, place=place, space=space, by_epoch=by_epoch,
        interval=interval, imports=_imports(cfg), dyrep_key=_key(cfg, 'dyrep'),
        random_state_key=_key(cfg, 'random_state'), has_hooks=_has_hooks(cfg),
        has_random_state=any(is_type(hook, RandomStateHook) for hook in _hooks(cfg)),
        input_shape=tuple(input_shape) if input_shape else None, recommended=recommended)
    try:
        _write(plan, lazy, cfg)
    except NotProbed as error:
        plan.input_shape = crop_size(cfg)
        if input_shape or plan.input_shape is None:
            raise ValueError(str(error)) from error
        _write(plan, lazy, cfg)
    return plan


class NotProbed(ValueError):
    """The backbone does not take the size of the probe."""


def _write(plan: Plan, lazy: bool, cfg: Config) -> None:
    text = new_style(plan) if lazy else old_style(plan)
    with atomic_path(plan.out, suffix='.py') as temporary:
        temporary.write_text(text, encoding='utf-8')
        _check(temporary, cfg, plan.source)


def _read(source: str) -> Config:
    try:
        if '::' in source:
            return get_config(source)
        if not os.path.isfile(source):
            raise FileNotFoundError(f'no config at {source}')
        return Config.fromfile(source)
    except FileNotFoundError:
        raise
    except Exception as error:  # a config is code, it may fail in any way
        raise ValueError(f'{source} can not be read ({type(error).__name__}: {error})') from error


def _backbones(node: Any, path: Tuple[Any, ...]) -> Iterator[Tuple[Any, ...]]:
    """Paths of the backbones in a model's config, those within backbones left out."""
    if isinstance(node, dict):
        for key in node:
            if key == 'backbone' and isinstance(node[key], dict):
                yield (*path, key)
            else:
                yield from _backbones(node[key], (*path, key))
    elif isinstance(node, (list, tuple)):
        for place, item in enumerate(node):
            yield from _backbones(item, (*path, place))


def _place_of_backbone(cfg: Config, source: str) -> List[str]:
    model = cfg.get('model')
    if not isinstance(model, dict):
        raise ValueError(f'{source} has no model')
    if is_type(model, DyRepBackbone):
        raise ValueError(f'{source} is wrapped by DyRepBackbone already')
    paths = list(_backbones(model, ('model', )))
    if len(paths) != 1:
        found = ', '.join('.'.join(map(str, path)) for path in paths)
        raise ValueError(f'{source} has {len(paths) or "no"} backbone{"s" if found else ""} in its model '
                         f'{"(" + found + ")" if found else "of type " + str(model.get("type"))}; '
                         'DyRep works on exactly one, a dict of the key `backbone`')
    place = paths[0]
    if not all(isinstance(key, str) and key.isidentifier() for key in place):
        raise ValueError(f'{source} has its backbone at {".".join(map(str, place))}, in a list or below a key that is '
                         'no name, where a config that inherits can not reach it; wrap it there by hand')
    node: Any = cfg
    for key in place:
        node = node[key]
    if is_type(node, DyRepBackbone):
        raise ValueError(f'{source} has its backbone wrapped by DyRepBackbone already')
    return list(place)


def _hooks(cfg: Config) -> List[Any]:
    return [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]


def _check_hooks(cfg: Config, source: str) -> None:
    if any(is_type(hook, DyRepHook) for hook in _hooks(cfg)):
        raise ValueError(f'{source} has a DyRepHook already')


def _key(cfg: Config, name: str) -> str:
    """Key among the default hooks that nothing else has."""
    while name in (cfg.get('default_hooks') or {}):
        name += '_'
    return name


def _has_hooks(cfg: Config) -> Optional[bool]:
    """Whether the config has a dict of default hooks; None if it has something else of this name."""
    return isinstance(cfg.default_hooks, dict) or None if 'default_hooks' in cfg else False


def _imports(cfg: Config) -> Dict[str, Any]:
    """``custom_imports`` to write: what there is and this package."""
    old = cfg.get('custom_imports') or {}
    names = old.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    new = {'imports': names if 'mmdyrep' in names else [*names, 'mmdyrep']}
    return new if 'allow_failed_imports' in old else {**new, 'allow_failed_imports': False}


def _schedule(cfg: Config, source: str, interval: Optional[int], recommended: bool) -> Tuple[bool, int]:
    """How the training loop counts, and t."""
    loop = cfg.get('train_cfg')
    if not isinstance(loop, dict):
        raise ValueError(f'{source} has no train_cfg, so it does not train')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    by_epoch = loop.get('by_epoch')
    if 'type' in loop:
        kind = class_of(LOOPS, loop, cfg)
        if not isinstance(kind, type) or not issubclass(kind, (EpochBasedTrainLoop, IterBasedTrainLoop)):
            raise ValueError(f'{source} trains in {loop["type"]}; DyRepHook works with EpochBasedTrainLoop, '
                             'IterBasedTrainLoop and what is derived from them')
        by_epoch = issubclass(kind, EpochBasedTrainLoop)
    if by_epoch is None:
        raise ValueError(f'{source} does not say in its train_cfg how it counts; it needs by_epoch or type')
    total = loop.get('max_epochs' if by_epoch else 'max_iters')
    if interval is None:
        interval = _rounded(total / (RECOMMENDED_INTERVALS if recommended else UPDATES)) if total else 1
    if not isinstance(interval, int) or interval < 1 or total and interval > total:
        raise ValueError(f'the interval is a number of {"epochs" if by_epoch else "iterations"} from 1 to the '
                         f'{total} of the training, got {interval}')
    return bool(by_epoch), interval


def _rounded(number: float) -> int:
    """At least 1, and one digit before the zeros."""
    return max(1, int(float(f'{number:.0e}')))


def _check(path: Path, cfg: Config, source: str) -> None:
    """Refuse what would not train."""
    wrapped = _read(str(path))
    try:
        model = build_model(wrapped)
    except Exception as error:  # a constructor may fail in any way
        try:
            build_model(cfg)
        except Exception as first:
            raise ValueError(f'the model of {source} does not build as it is ({_short(first)})') from first
        raise ValueError(f'the model of {source} does not build with a wrapped backbone ({_short(error)})') from error
    _, backbone = find_backbone(model)
    try:
        candidates = backbone.candidates()
    except RuntimeError as error:
        raise NotProbed(f'{source}: {error}') from error
    if not candidates:
        raise ValueError(f'no op of the backbone of {source} can be expanded: {backbone.why_none()}')


def _short(error: Exception) -> str:
    return f'{type(error).__name__}: {re.sub(chr(10) + ".*", " ...", str(error), flags=re.DOTALL)}'
