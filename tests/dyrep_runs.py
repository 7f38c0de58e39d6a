"""Small trainings with DyRepHook in this process, and what they leave behind."""
import itertools
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdyrep.fileio import read_json
from tests.runs import small_config

_number = itertools.count()


def dyrep_config(hook: Optional[Dict[str, Any]] = None, by_epoch: bool = True, backbone: Dict[str, Any] = {},
                 **changes: Any) -> Config:
    """The small run with a wrapped backbone; an update after each of 4 epochs or every 8 of 32 iterations.

    Args:
        hook (dict, optional): Settings of DyRepHook; None: without the hook.
        by_epoch (bool): Epoch or iteration loop.
        backbone (dict): Settings of DyRepBackbone.
        changes: As of ``small_config``.
    """
    cfg = small_config(by_epoch, **changes)
    cfg.model.backbone = dict(type='DyRepBackbone', backbone=cfg.model.backbone, **backbone)
    if hook is not None:
        cfg.default_hooks.dyrep = dict(dict(
            type='DyRepHook', interval=1 if by_epoch else 8, by_epoch=by_epoch, calibration_batches=2), **hook)
    cfg.default_hooks.checkpoint.save_last = False
    cfg.default_hooks.checkpoint.interval = 1000
    return cfg


def runner_of(cfg: Config, folder: Path, hooks: Sequence[Hook] = (), validate: bool = False) -> Runner:
    """Runner of a config, with further hooks."""
    cfg = Config(dict(cfg.to_dict(), work_dir=str(folder), experiment_name=f'{folder.name}-{next(_number)}'))
    for field in () if validate else ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg.pop(field, None)
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def trained(cfg: Config, folder: Path, hooks: Sequence[Hook] = (), validate: bool = False) -> Runner:
    """The runner after its training."""
    runner = runner_of(cfg, folder, hooks, validate)
    runner.train()
    return runner


def history(folder: Path) -> Dict[str, Any]:
    return read_json(folder / 'dyrep' / 'history.json')


def updates(folder: Path) -> List[Dict[str, Any]]:
    return history(folder)['updates']


def log_lines(folder: Path) -> List[str]:
    """What DyRep said in the log, without the time in front."""
    text = ''.join(path.read_text() for path in sorted(folder.glob('*/*.log')))
    return [line[line.index('DyRep'):] for line in text.splitlines() if ' - DyRep' in line]


class AroundUpdates(Hook):
    """Calls with the runner right before and right after the place of an update in an epoch loop.

    Args:
        before (callable): Takes the runner.
        after (callable): The same.
    """

    priority = 79

    def __init__(self, before: Callable[[Runner], Any], after: Callable[[Runner], Any]) -> None:
        self.before, self.later = before, _Later(after)

    def before_run(self, runner: Runner) -> None:
        runner.register_hook(self.later)

    def after_train_epoch(self, runner: Runner) -> None:
        self.before(runner)


class _Later(Hook):
    priority = 81

    def __init__(self, call: Callable[[Runner], Any]) -> None:
        self.call = call

    def after_train_epoch(self, runner: Runner) -> None:
        self.call(runner)


class Record(Hook):
    """Notes what ``look`` sees in the runner in front of each iteration."""

    def __init__(self, look: Callable[[Runner], Any]) -> None:
        self.look = look
        self.seen: List[Any] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.seen.append(self.look(runner))
