"""What the wrapper is told: checked before any module is touched."""
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from mmengine.registry import MODELS
from torch import nn

from mmdyrep import reparam
from mmdyrep.libraries import INSTALL, LIBRARIES, is_there

from .norms import check_norm, warn_if_unlike

if TYPE_CHECKING:
    from .dyrep_backbone import DyRepBackbone


@dataclass
class Settings:
    """What the wrapper knows beside the modules; names, never modules, since those get replaced."""

    space: List[str]
    gamma_init: float
    max_depth: int
    norm_cfg: Optional[dict]
    exclude: Tuple[str, ...]
    input_shape: Optional[Tuple[int, ...]]
    static: bool
    pinned: bool
    keep_norm: bool = True
    left_out: Tuple[str, ...] = ()
    survey: Optional[reparam.Survey] = None
    seconds: float = 0.0  # that the survey took
    example: Optional[Tuple[Tuple, Mapping[str, Any]]] = None  # inputs, where one image is not what the forward takes
    deployed: bool = False
    online: bool = False
    start: reparam.Start = field(default_factory=reparam.Drawn)
    branch_init: Union[str, Dict[str, Any]] = 'default'  # what start was built from

    @property
    def told(self) -> Dict[str, Any]:
        """What the record of a run tells of them."""
        return {'space': list(self.space), 'online': self.online, 'gamma_init': self.gamma_init,
                'branch_init': self.branch_init}

    def survey_by(self, find: Callable[..., reparam.Survey], *args: Any) -> reparam.Survey:
        """Keep what ``find(*args)`` finds, and the time that it took."""
        begin = time.perf_counter()
        survey = self.survey = find(*args)
        self.seconds = time.perf_counter() - begin
        return survey

    def excludes(self, name: str) -> bool:
        """Whether the convolution of this name is to be left alone."""
        return any(name == part or name.startswith(part + '.') for part in self.exclude)


def checked(space: Any, static: bool, structure: Any, gamma_init: float, max_depth: int, norm_cfg: Optional[dict],
            exclude: Sequence[str], input_shape: Any, keep_norm: bool = True, online: bool = False,
            branch_init: Any = 'default') -> Settings:
    """Settings out of the arguments of the wrapper; those that can't be are refused by name."""
    if isinstance(exclude, str):
        raise TypeError(f"exclude takes a sequence of names, got the string {exclude!r}; write exclude=('{exclude}',)")
    if not isinstance(gamma_init, (int, float)) or not math.isfinite(gamma_init) or gamma_init <= 0:
        raise ValueError(f'gamma_init must be a positive number, got {gamma_init!r}')
    if not isinstance(max_depth, int) or max_depth < 1:
        raise ValueError(f'max_depth must be a whole number of at least 1, got {max_depth!r}')
    if static and structure is not None:
        raise ValueError('static=True expands every op; give it or a structure, not both')
    if not keep_norm and not static and structure is None:
        raise ValueError('keep_norm=False leaves out the norm behind the blocks of a fixed structure, as DBB and '
                         'RepVGG do; give static=True or a structure with it')
    if isinstance(input_shape, int):
        input_shape = (input_shape, input_shape)
    if input_shape is not None and len(input_shape) not in (2, 3):
        raise ValueError(f'input_shape is (H, W) or (C, H, W), got {input_shape!r}')
    if norm_cfg is not None:
        check_norm(norm_cfg)
    names = reparam.resolve_space(space)
    if len(names) < 2:
        raise ValueError(f"the operation space {space!r} has no branch beside 'kxk'")
    return Settings(names, float(gamma_init), max_depth, norm_cfg, tuple(exclude),
                    tuple(input_shape) if input_shape else None, static, bool(static or structure is not None),
                    bool(keep_norm), online=bool(online), start=reparam.start_of(branch_init),
                    branch_init=branch_init if isinstance(branch_init, str) else dict(branch_init))


def build(backbone: Union[Mapping, nn.Module]) -> nn.Module:
    """Backbone of a config, built in the current scope; a module as it is.

    Raises:
        KeyError: If its type is not registered there.
    """
    if isinstance(backbone, nn.Module):
        return backbone
    try:
        return MODELS.build(backbone)
    except KeyError as error:
        kind: Any = backbone.get('type')
        if not str(error.args[0]).startswith(f'{kind} is not in the '):
            raise  # something within the backbone
        library = kind.split('.')[0]
        if '.' in kind and library in LIBRARIES and not is_there(library):
            raise KeyError(f'backbone type {kind!r} is of a library that is missing: {library} is not installed. '
                           f'{INSTALL}') from error
        raise KeyError(f'backbone type {kind!r} is not in the registry of the current scope. Name its library, as in '
                       f"type='mmdet.{kind.split('.')[-1]}', or set default_scope in the config. ({error})") from error


def check_inner(settings: Settings, inner: nn.Module) -> None:
    """Refuse names that the backbone does not have; say what its norms do not have."""
    warn_if_unlike(settings.norm_cfg, inner)
    exclude = settings.exclude
    names = {name for name, _ in inner.named_modules()}
    # parts of a block are there only later
    unknown = [name for name in exclude
               if name not in names and not any(name.startswith(f'{op}.branches.') for op in names)]
    if unknown:
        raise ValueError(f'exclude names {unknown[0]!r}, but {type(inner).__name__} has no module of this name; its '
                         f'parts are {[name for name, _ in inner.named_children()]}')


def static_structure(inner: 'DyRepBackbone', settings: Settings) -> Mapping[str, Any]:
    """Structure with every op that can be expanded, by all branches of the space that fit.

    Raises:
        ValueError: If there is no such op.
    """
    fits = {name: reparam.fitting(settings.space, reparam.surgery.geometry_of(inner.get_submodule(name)))
            for name in inner.survey.ops if not settings.excludes(name)}
    ops = {name: ['kxk', *branches] for name, branches in fits.items() if branches}
    if not ops:
        raise ValueError(f'static=True, but no op can be expanded: {inner.why_none()}')
    return {'version': reparam.structure.VERSION, 'ops': ops}
