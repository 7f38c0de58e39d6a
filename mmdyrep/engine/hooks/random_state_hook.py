"""Runs that resume bit for bit."""
from typing import Any, Dict, List, Optional

from mmengine.dataset import worker_init_fn
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..calibrating import check_resumed
from ..checkpoints import make_checkpoints_atomic, resume_from_readable
from ..loops import epoch_length, loaders_of
from ..random_state import counts_iterations, set_random_state, watch_fetches


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Make random state a function of (seed, epoch or iteration, rank), so that a resumed run is exact.

    mmengine saves no random state. This hook sets that of python, numpy and torch (CPU and GPU) at the start of each
    epoch, in an iteration loop before each batch is fetched, those that a resumed run skips included. A run that was
    killed and goes on with ``--resume`` then ends with the same bytes in weights, averaged weights, optimizer and
    schedulers as one that ran straight through; so do training runs whose validation draws random numbers, and a plain
    run and its DyRep twin see the same random numbers at the same place.

    Checkpoints are written whole or not at all, and a broken one is replaced by the newest before it, with a warning
    (``mmdyrep.engine.checkpoints``).

    It takes a seed, ``deterministic=True``, the same number of processes and data workers, and in epoch loops
    checkpoints at the end of epochs and data workers that are not persistent. What keeps a run from being exact is
    said in the log when it starts. Transforms that keep state of their own from epoch to epoch (caches of mosaic or
    mixup in the main process) are not restored.

    Data workers: ``worker_init_fn`` of mmengine seeds them by (seed, rank, worker) whenever they start, and those that
    are not persistent start anew in each epoch. So every epoch repeats the same augmentation draws, on images that
    are shuffled anew. This hook leaves it at that; ``num_workers=0`` draws anew in each epoch.
    """

    # after all hooks that could draw random numbers at the start of an epoch
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._given: Optional[int] = None

    def before_run(self, runner: Runner) -> None:
        """Make checkpoints safe and choose the one to resume from; note the seed before a resume replaces it."""
        make_checkpoints_atomic(runner)
        resume_from_readable(runner)
        self._given = runner._randomness_cfg.get('seed')

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Refuse to resume a run with another ``DyRepBackbone(online=...)``, which nothing else would tell."""
        check_resumed(runner, checkpoint)

    def before_train(self, runner: Runner) -> None:
        """Say what will not be exact; in an iteration loop take part in each fetch."""
        for line in _obstacles(runner, self._given):
            runner.logger.warning(f'RandomStateHook: {line}')
        if _repeats_draws(runner):
            runner.logger.info('RandomStateHook: the data workers start each epoch from the same seeds, so every epoch '
                               'repeats the same augmentation draws, on images that are shuffled anew')
        if counts_iterations(runner):
            watch_fetches(runner).before.append(lambda index: set_random_state(runner.seed, index, runner.rank))

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the state before the data loader's iterator is made, which draws its seed from it."""
        if not counts_iterations(runner):
            set_random_state(runner.seed, runner.epoch, runner.rank)


def _obstacles(runner: Runner, given: Optional[int]) -> List[str]:
    """What keeps a resumed run from being exact, each with its remedy."""
    by_iteration, length = counts_iterations(runner), epoch_length(runner)
    lines = []
    if given is None:
        lines.append('no seed is set, so a resumed run shuffles in another order; '
                     'set randomness=dict(seed=..., deterministic=True)')
    elif runner._randomness_cfg['seed'] != given:
        lines.append(f'the checkpoint comes from a run with seed {runner.seed}, the config has {given}, which the data '
                     f'loader keeps; set randomness.seed={runner.seed} for an exact resume')
    if not runner.deterministic:
        lines.append('operations may differ from run to run in the last bits; set randomness.deterministic=True')
    if any(getattr(loader, 'persistent_workers', False) for loader in loaders_of(runner)) and not by_iteration:
        lines.append('the random state of persistent data workers can\'t be restored, a resumed run augments '
                     'otherwise; set train_dataloader.persistent_workers=False')
    savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    if not by_iteration and any(not hook.by_epoch for hook in savers):
        lines.append('checkpoints are saved by iterations, an epoch loop resumes at the start of an epoch; '
                     'set by_epoch=True and the interval in epochs in the checkpoint hook')
    optim_wrapper = runner.optim_wrapper
    count = getattr(optim_wrapper, '_accumulative_counts', 1) if isinstance(optim_wrapper, OptimWrapper) else 1
    steps = [hook.interval if by_iteration else hook.interval * (length or 0) for hook in savers if hook.interval > 0]
    if any(step % count for step in steps):
        lines.append(f'gradients are accumulated over {count} iterations and checkpoints are saved in between, which '
                     f'loses them; let the iterations between checkpoints be a multiple of {count}')
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, dict):
        schedulers = [scheduler for group in schedulers.values() for scheduler in group]
    if any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers):
        lines.append('a scheduler steps on validation results, after the checkpoint is saved, and a resumed run '
                     'misses that step; use one that follows epochs or iterations')
    if any(isinstance(hook, EarlyStoppingHook) for hook in runner.hooks):
        lines.append('EarlyStoppingHook counts its patience anew after a resume; train without it to stop where a '
                     'straight run stops')
    return lines


def _repeats_draws(runner: Runner) -> bool:
    return not counts_iterations(runner) and any(
        getattr(getattr(loader, 'worker_init_fn', None), 'func', None) is worker_init_fn
        and loader.num_workers > 0 and not loader.persistent_workers for loader in loaders_of(runner))
