"""The text of a config that inherits from another one, in both of mmengine's styles."""
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from mmengine.utils import get_installed_path

# as configs/_base_/dyrep_recommended.py, whose reasons stand there
RECOMMENDED_HOOK: Dict[str, Any] = dict(num_grow=2, metric='snip_bn', dep=None)
RECOMMENDED_BACKBONE: Dict[str, Any] = dict(branch_init='split', online=True)
RECOMMENDED_UPDATES = 4


@dataclass
class Plan:
    """What a config adds to the one it inherits from.

    Args:
        source (str): Path or ``library::path`` of the other config.
        out (Path): File to write.
        place (list[str]): Keys down to the backbone.
        space (str or Sequence[str]): Operation space.
        by_epoch (bool): How the training loop counts.
        interval (int): t.
        imports (dict): ``custom_imports``.
        dyrep_key (str): Key of DyRepHook among the default hooks.
        random_state_key (str): Key of RandomStateHook.
        has_hooks (bool, optional): Whether there are default hooks; None: there is no dict of this name.
        has_random_state (bool): Whether RandomStateHook is there already.
        input_shape (tuple, optional): (H, W) or (C, H, W) for the probe.
        recommended (bool): This package's settings instead of the paper's.
    """
    source: str
    out: Path
    place: List[str]
    space: Union[str, Sequence[str]]
    by_epoch: bool
    interval: int
    imports: Dict[str, Any]
    dyrep_key: str
    random_state_key: str
    has_hooks: Optional[bool]
    has_random_state: bool
    input_shape: Optional[Tuple[int, ...]] = None
    recommended: bool = False

    @property
    def hooks(self) -> List[Tuple[str, str, str]]:
        """Key, class and further arguments of the hooks to add."""
        settings = dict(interval=self.interval, by_epoch=self.by_epoch)
        if self.recommended:
            settings.update(end=RECOMMENDED_UPDATES * self.interval, **RECOMMENDED_HOOK)
        found = [(self.dyrep_key, 'DyRepHook', _arguments(settings))]
        return found if self.has_random_state else [*found, (self.random_state_key, 'RandomStateHook', '')]

    @property
    def options(self) -> str:
        """Further arguments of DyRepBackbone."""
        settings: Dict[str, Any] = {}
        if self.space != 'dyrep':
            settings['space'] = self.space if isinstance(self.space, str) else list(self.space)
        if self.input_shape is not None:
            settings['input_shape'] = tuple(self.input_shape)
        return _arguments({**settings, **(RECOMMENDED_BACKBONE if self.recommended else {})})

    @property
    def title(self) -> str:
        """First line of the file."""
        return f'# {Path(self.source.split("::")[-1]).stem} with DyRep\n'


def old_style(plan: Plan) -> str:
    """Text with ``_base_``."""
    base = plan.source
    if '::' not in base:
        base = os.path.relpath(base, plan.out.parent).replace(os.sep, '/')
    wrapped = f"dict(_delete_=True, type='DyRepBackbone', backbone=_base_.{'.'.join(plan.place)}{plan.options})"
    for key in reversed(plan.place[1:]):
        wrapped = f'dict({key}={wrapped})'
    # something that is no dict, None for example, is replaced
    begin = ['_delete_=True'] if plan.has_hooks is None else []
    hooks = begin + [f"{key}=dict(type='{kind}'{options})" for key, kind, options in plan.hooks]
    return (f'{plan.title}_base_ = {base!r}\n'
            f'custom_imports = {_call(plan.imports)}\n\n'
            f'model = {wrapped}\n'
            f'default_hooks = dict(\n    {_lines(hooks)})\n')


def new_style(plan: Plan) -> str:
    """Text with ``read_base`` and types as classes: this style can't be inherited by ``_base_``."""
    kinds = ', '.join(['DyRepBackbone', *(kind for _, kind, _ in plan.hooks)])
    backbone = '.'.join(plan.place)
    hooks = [f'{key}=dict(type={kind}{options})' for key, kind, options in plan.hooks]
    call = 'default_hooks.update' if plan.has_hooks else 'default_hooks = dict'
    return (f'{plan.title}from mmengine.config import read_base\n\nfrom mmdyrep import {kinds}\n\n'
            f'with read_base():\n    from {_module(plan)} import *  # noqa: F401, F403\n\n'
            f'{backbone} = dict(type=DyRepBackbone, backbone={backbone}{plan.options})  # noqa: F405\n'
            f'{call}(  # noqa: F405\n    {_lines(hooks)})\n')


def _arguments(settings: Dict[str, Any]) -> str:
    return ''.join(f', {key}={value!r}' for key, value in settings.items())


def _lines(arguments: Sequence[str]) -> str:
    return ',\n    '.join(arguments)


def _call(values: Dict[str, Any]) -> str:
    return f'dict({", ".join(f"{key}={value!r}" for key, value in values.items())})'


def _module(plan: Plan) -> str:
    """The source as a module to import from, relative to the file to write or to the package it lies in."""
    source, folder = Path(plan.source).resolve(), plan.out.resolve().parent
    relative = os.path.relpath(source.with_suffix(''), folder).split(os.sep)
    ups = relative.count('..')
    if all(part.isidentifier() for part in relative[ups:]):
        return '.' * (ups + 1) + '.'.join(relative[ups:])
    for depth in range(len(source.parts) - 1, 0, -1):
        package = source.parts[depth - 1]
        parts = [package, *source.with_suffix('').parts[depth:]]
        if all(part.isidentifier() for part in parts) and _installed(package) == Path(*source.parts[:depth]):
            return '.'.join(parts)
    raise ValueError(f'{plan.source} can not be imported from {folder}: a folder or file on the way has a name that '
                     f'Python does not import. Write the new config to {source.parent}')


def _installed(package: str) -> Optional[Path]:
    try:
        return Path(get_installed_path(package)).resolve()
    except Exception:  # not a package
        return None
