"""Short DyRep trainings in this process, with hooks of a test's own."""
from pathlib import Path
from typing import Any, Callable, List, Optional

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdyrep import DyRepHook


class Call(Hook):
    """Calls functions at places of a training.

    Args:
        before (callable, optional): Just before an update: takes the runner.
        after (callable, optional): Just after it.
        iteration (callable, optional): After each iteration.
    """

    def __init__(self, before: Optional[Callable] = None, after: Optional[Callable] = None,
                 iteration: Optional[Callable] = None) -> None:
        self.before, self.after, self.iteration = before, after, iteration

    def before_train(self, runner: Runner) -> None:
        if not (self.before or self.after):
            return
        hook = dyrep_hook(runner)
        update = hook.after

        def watched(runner: Runner, now: int) -> None:
            if self.before:
                self.before(runner)
            update(runner, now)
            if self.after:
                self.after(runner)

        hook.after = watched

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.iteration:
            self.iteration(runner)


def dyrep_hook(runner: Runner) -> DyRepHook:
    """The DyRepHook of a runner."""
    return next(hook for hook in runner.hooks if isinstance(hook, DyRepHook))


def runner_of(cfg: Config, work_dir: Path, *hooks: Hook) -> Runner:
    """A runner in this process, with hooks beside those of the config; checkpoints and validation off."""
    cfg = Config(cfg.to_dict())
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'{work_dir.parent.name}-{work_dir.name}'
    cfg.default_hooks.checkpoint = None
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def messages(runner: Runner, caplog: Any) -> List[str]:
    """What a runner logs while it trains."""
    runner.logger.addHandler(caplog.handler)
    caplog.clear()
    runner.train()
    return [record.getMessage() for record in caplog.records]
