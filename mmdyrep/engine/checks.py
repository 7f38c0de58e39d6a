"""What can't work is refused before the first iteration, with what to do instead."""
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional, Union

from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmdyrep.models import DyRepBackbone

from .distributed import check_lengths
from .optimizer import check_groups
from .stepping import check_optimizer


@contextmanager
def told_by(hook: str) -> Iterator[None]:
    """Let messages of refusals that hooks share name the hook that is meant."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if 'DyRepHook' not in str(error):
            raise
        raise type(error)(str(error).replace('DyRepHook', hook)) from error.__cause__


def require_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f'DyRepHook: {name} must be a whole number of at least {least}, got {value!r}')


def check_settings(interval: int, begin: int, end: Optional[int], num_grow: int,
                   dep: Optional[Dict[str, float]], calibration_batches: int,
                   max_macs_ratio: Optional[float]) -> None:
    """Refuse settings of the hook that make no sense, with the name of the setting."""
    require_whole('interval', interval, 1)
    require_whole('begin', begin, 0)
    require_whole('num_grow', num_grow, 1)
    require_whole('calibration_batches', calibration_batches, 1)
    if end is not None:
        require_whole('end', end, begin + 1)
    if max_macs_ratio is not None and not max_macs_ratio > 1:
        raise ValueError(f'DyRepHook: max_macs_ratio is a multiple of the plain backbone, above 1; '
                         f'got {max_macs_ratio!r}')
    if dep is not None and (set(dep) - {'threshold', 'bound', 'unbiased'} or not dep.get('threshold', -1) >= 0):
        raise ValueError(f'DyRepHook: dep takes threshold (at least 0), bound and unbiased, or is None; got {dep}')


def check_runner(runner: Runner, by_epoch: bool, backbone: DyRepBackbone) -> None:
    """Refuse runners, optimizers, their wrappers and loops that DyRep does not work with."""
    # a subclass of OptimWrapper by name only
    if not isinstance(runner.optim_wrapper, OptimWrapper) or isinstance(runner.optim_wrapper, OptimWrapperDict):
        raise ValueError(f'DyRepHook needs one OptimWrapper, got {type(runner.optim_wrapper).__name__}')
    check_groups(runner.optim_wrapper.optimizer, runner.cfg.get('optim_wrapper'))
    check_optimizer(runner.optim_wrapper.optimizer, backbone)
    if runner.cfg.get('efficient_conv_bn_eval'):
        raise ValueError('DyRepHook does not work with efficient_conv_bn_eval: it fixes the graph of the modules as '
                         'they are at the start, so new branches would not be run. Remove it from the config')
    loop: Union[EpochBasedTrainLoop, IterBasedTrainLoop] = runner.train_loop
    if isinstance(loop, IterBasedTrainLoop) and by_epoch:
        raise ValueError('DyRepHook: by_epoch=True does not fit IterBasedTrainLoop; give by_epoch=False and the '
                         'interval in iterations')
    if isinstance(loop, EpochBasedTrainLoop) and not by_epoch:
        raise ValueError('DyRepHook: by_epoch=False does not fit EpochBasedTrainLoop; give by_epoch=True and the '
                         'interval in epochs')
    if by_epoch:
        check_lengths(runner)


def check_candidates(backbone: DyRepBackbone) -> None:
    """Refuse a backbone of which nothing can be expanded, not even what is frozen at the moment."""
    skipped = backbone.skipped()
    if not backbone.candidates() and 'frozen' not in skipped.values():
        raise ValueError('DyRepHook: no op of the backbone can be expanded: ' + backbone.why_none())


def check_order(runner: Runner, hook: Hook) -> None:
    """Refuse an EMAHook that would look at a loaded checkpoint before its averaged copy has the structure."""
    for other in runner.hooks[:runner.hooks.index(hook)]:
        if isinstance(other, EMAHook):
            raise ValueError(f'DyRepHook: {type(other).__name__} has priority {other.priority}, DyRepHook '
                             f'{hook.priority}; it must come after DyRepHook: leave its priority at NORMAL')


def check_space(backbone: DyRepBackbone) -> None:
    """Refuse a structure, out of a checkpoint, with branches outside of the config's operation space."""
    for name, branches in backbone.structure['ops'].items():
        strange = [branch for branch in branches if branch not in backbone.space]
        if strange:
            raise ValueError(f'the checkpoint has branch {strange[0]!r} at {name}, the config\'s space '
                             f'is {backbone.space}; resume with the space that the run began with')
