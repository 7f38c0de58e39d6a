"""When: Algorithm 1 in an mmengine runner."""
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from mmdyrep.dynamics import Metric, Moment, Op, eval_output, name_of
from mmdyrep.models.finding import find_backbone, unwrapped

from .. import report
from ..batches import LastBatches
from ..checkpoints import make_checkpoints_atomic, resume_from_readable
from ..checks import check_order, check_runner, check_settings, check_space
from ..compiling import compile_anew
from ..distributed import (
    check_agreement,
    check_wrapper,
    from_first_rank,
    mean_statistics,
    remember_comm_hook,
    saves_after_iteration,
    wrap_anew,
)
from ..ema import averaged_copies
from ..following import follow
from ..gradients import before_each_step
from ..history import History, check_saved, write_files
from ..memory import explain_out_of_memory
from ..optimizer import rebuild_groups, refresh_schedulers, scheduler_list
from ..random_state import watch_fetches
from ..restoring import all_or_nothing
from ..scoring import check_metric, metric_settings, ops_of, score, try_metric
from ..updating import Policy, Round, cost, counting_shape, update


class _After(Hook):
    """Calls at the place of an update: after EMA and schedulers, before checkpoints."""

    priority = 80

    def __init__(self, owner: 'DyRepHook') -> None:
        self.owner = owner

    def after_train_epoch(self, runner: Runner) -> None:
        if self.owner.by_epoch:
            self.owner.share_statistics(runner)
            self.owner.after(runner, runner.epoch + 1)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not self.owner.by_epoch:
            if saves_after_iteration(runner):
                self.owner.share_statistics(runner)
            self.owner.after(runner, runner.iter + 1)


@HOOKS.register_module()
class DyRepHook(Hook):
    """Train with DyRep: expand the most salient op every ``interval``, remove redundant branches (Algorithm 1).

    Args:
        interval (int): t; an update follows epoch (or iteration) e if begin < e <= end and
            (e - begin) % interval == 0. Defaults to 5.
        by_epoch (bool): Count epochs, as an epoch loop does, or iterations. Defaults to True.
        begin (int): Defaults to 0.
        end (int, optional): After it neither Rep nor Dep. Defaults to the end of training.
        metric (str or dict): A name out of `METRICS`, or dict(type=name, settings...). Defaults to 'synflow'.
        num_grow (int): Ops expanded in an update. Defaults to 1.
        dep (dict, optional): ``threshold``, the lambda of Section 4.2, and ``bound``, the greatest importance of
            a branch that is cut (off by default). None: without Dep. Defaults to dict(threshold=0.02).
        calibration_batches (int): Last batches of the interval that BN statistics come from. Defaults to 20.
        max_macs_ratio (float, optional): Budget, times the plain backbone's MACs; an op that would exceed it is
            passed over for the next. Defaults to no budget.
    """

    # before EMAHook (40 to 50) looks at a loaded checkpoint
    priority = 30
    # of an update, relative; measured in the precision of the weights, float32's rounding stays far below
    drift_tolerance = 1e-3

    def __init__(self, interval: int = 5, by_epoch: bool = True, begin: int = 0, end: Optional[int] = None,
                 metric: Metric = 'synflow', num_grow: int = 1, dep: Optional[Dict[str, float]] = dict(threshold=0.02),
                 calibration_batches: int = 20, max_macs_ratio: Optional[float] = None) -> None:
        check_settings(interval, begin, end, num_grow, dep, calibration_batches, max_macs_ratio)
        self.interval, self.by_epoch, self.begin, self.end = interval, bool(by_epoch), begin, end
        self.metric, self._metric = name_of(metric), metric
        self.policy = Policy(num_grow, dep and dep['threshold'], dep and dep.get('bound'), max_macs_ratio)
        self.saliency = check_metric(metric, calibration_batches, interval, by_epoch)
        self.history = History()
        self.structures: Dict[int, Dict[str, Any]] = {}
        self.batches = LastBatches(calibration_batches)
        self._ops: Optional[List[Op]] = None
        self._shape: Optional[Sequence[int]] = None

    # ------------------------------------------------------------------ before training

    def before_run(self, runner: Runner) -> None:
        """Refuse what can't work, before any weight is touched; take part in what follows."""
        if not isinstance(getattr(runner, '_train_loop', None), BaseLoop):
            return  # a test or validation run, whose config may tell of a training that is not built
        check_wrapper(runner)
        self._name, self._backbone = find_backbone(runner.model)
        check_runner(runner, self.by_epoch)
        check_order(runner, self)
        if not self._backbone.candidates():
            raise ValueError('DyRepHook: no op of the backbone can be expanded: ' + self._backbone.why_none())
        if not any(isinstance(hook, _After) for hook in runner.hooks):
            runner.register_hook(_After(self))
        remember_comm_hook(runner)
        make_checkpoints_atomic(runner)
        resume_from_readable(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Take the structure of a checkpoint, optimizer and EMA brought along; on resume the history, too."""
        name, backbone = find_backbone(runner.model)
        prefix = f'{name}.' if name else ''
        training = isinstance(getattr(runner, 'optim_wrapper', None), OptimWrapper)
        saved = checkpoint.get('dyrep') if training and getattr(runner, '_resume', False) else None
        if saved is not None:
            check_saved(saved)
        before = backbone.structure
        backbone.match_structure(checkpoint.get('state_dict', checkpoint), prefix)
        follow(runner, self._bring_along, backbone.structure != before)
        if training and getattr(runner, '_resume', False):
            check_space(backbone)
            if saved is not None:
                self.history = History(saved['history'])
                self.saliency.load_state_dict(saved['saliency'])
                self.structures = dict(saved.get('structures', {}))

    def before_train(self, runner: Runner) -> None:
        """Log what can grow; rewrite the run's files from what was loaded, those of a later time go."""
        self._folder = Path(runner.work_dir) / 'dyrep'
        self._seed = from_first_rank(runner.seed or 0)
        self.saliency.to(next(self._backbone.parameters()).device)
        if follow(runner, self._bring_along):
            compile_anew(runner)
        before_each_step(runner.optim_wrapper.optimizer, self._observe)
        explain_out_of_memory(runner, lambda: self.history)
        for line in report.opening(self._backbone, self.metric):
            runner.logger.info(line)
        if not self.by_epoch:
            watch_fetches(runner).after.append(lambda index, batch: self._keep(index + 1, 1, batch))
        if runner.rank == 0:
            write_files(self._folder, self.structures, runner.epoch if self.by_epoch else runner.iter)

    # ------------------------------------------------------------------ in the interval

    def _due(self, now: int) -> bool:
        return self.begin < now and (self.end is None or now <= self.end) and (now - self.begin) % self.interval == 0

    def _next(self, now: int) -> Optional[int]:
        """The update that epoch (or iteration) ``now``, counted from 1, works towards."""
        if now <= self.begin:
            return None
        due = self.begin + math.ceil((now - self.begin) / self.interval) * self.interval
        return due if self.end is None or due <= self.end else None

    def _keep(self, now: int, left: int, batch: Any) -> None:
        """Keep a batch of epoch (or iteration) ``now`` if it is among the last before an update."""
        due = self._next(now)
        if due is not None and (not self.by_epoch or due == now):
            self.batches.keep(due, left if self.by_epoch else due - now + 1, batch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the last batches of the interval; iteration loops do so at each fetch, skipped ones included."""
        if self._shape is None:
            self._start(runner, data_batch)
        now = (runner.epoch if self.by_epoch else runner.iter) + 1
        self._active = self._next(now) is not None
        if self.by_epoch:
            self._keep(now, len(runner.train_dataloader) - batch_idx, data_batch)

    def _start(self, runner: Runner, data_batch: Any) -> None:
        """Count the costs at the start, which takes the size of a batch."""
        model = unwrapped(runner.model)
        shapes = []
        hook = self._backbone.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
        try:
            if self._backbone.input_shape is None:
                eval_output(model, self._backbone, self._round(runner, []).run, data_batch)
        finally:
            hook.remove()
        try_metric(self._metric, self._round(runner, [data_batch]))
        # batches of other ranks may have another size, and the budget would allow other ops
        self._shape = from_first_rank(counting_shape(self._backbone, shapes[0] if shapes else None))
        self.history.begin(runner.iter, cost(model, self._backbone, self._shape), self._settings())
        self._write(runner)

    @torch.no_grad()
    def _observe(self, scale: Any) -> None:
        if not self._active:
            return
        self._ops = self._ops or ops_of(self._backbone)
        self.saliency.observe(self._ops, scale)

    # ------------------------------------------------------------------ the update

    def after(self, runner: Runner, now: int) -> None:
        """Called after every epoch (or iteration), counted from 1."""
        if not self._due(now):
            return
        when = f'the update of {"epoch" if self.by_epoch else "iteration"} {now}'
        self.share_statistics(runner)
        check_agreement(self._models(runner), f'before {when}')
        moment = Moment(self._seed, len(self.history.updates))
        runner.model.train()
        round_ = self._round(runner, self.batches.all())
        scores, told = score(self.saliency, round_, moment)
        changing = [self._backbone, *(copy.backbone for copy in round_.copies)]
        try:
            with all_or_nothing(changing, runner.optim_wrapper, scheduler_list(runner.param_schedulers)):
                entry = update(round_, scores, self.policy, moment)
                if entry['grown'] or entry['cut']:
                    self._bring_along(runner)
        finally:
            for copy in round_.copies:
                copy.relist()
        check_agreement(self._models(runner), f'after {when}')
        if entry['grown'] or entry['cut']:
            wrap_anew(runner)
            compile_anew(runner)
        self.saliency.reset()
        self.batches.clear()
        entry = {'epoch': runner.epoch + 1 if self.by_epoch else runner.epoch, 'iter': runner.iter + (
            0 if self.by_epoch else 1), 'metric': self.metric, **told, **entry}
        self.history.add(entry)
        for line in report.change(entry, self.by_epoch):
            runner.logger.info(line)
        for line in report.alarm(entry, self.drift_tolerance):
            runner.logger.warning(line)
        runner.visualizer.add_scalars({
            'dyrep/macs': entry['macs'].get('model', entry['macs']['backbone']),
            'dyrep/parameters': entry['parameters']['model'],
            'dyrep/blocks': len(self._backbone.structure['ops']),
        }, step=entry['epoch'] if self.by_epoch else entry['iter'])
        self.structures[now] = self._backbone.structure
        self._write(runner)

    def _models(self, runner: Runner) -> List[nn.Module]:
        return [unwrapped(runner.model), *(copy.model for copy in averaged_copies(runner))]

    def share_statistics(self, runner: Runner) -> None:
        """Make the batch norm statistics of all ranks the same, as before an update and before they are saved."""
        mean_statistics(self._models(runner))

    def _round(self, runner: Runner, batches: Sequence[Any]) -> Round:
        model = unwrapped(runner.model)

        def exact_run(batch: Any) -> Any:
            return model._run_forward(model.data_preprocessor(batch, True), mode='loss')

        def run(batch: Any) -> None:
            with runner.optim_wrapper.optim_context(model):
                exact_run(batch)

        return Round(model, self._backbone, run, batches, self._shape, averaged_copies(runner), exact_run)

    def _bring_along(self, runner: Runner) -> None:
        """Whatever hangs on the parameters follows the new structure."""
        self._ops = None
        rebuild_groups(runner.optim_wrapper, unwrapped(runner.model), runner.cfg.get('optim_wrapper'))
        refresh_schedulers(scheduler_list(runner.param_schedulers))

    # ------------------------------------------------------------------ files

    def _settings(self) -> Dict[str, Any]:
        return {**metric_settings(self._metric), 'interval': self.interval, 'by_epoch': self.by_epoch,
                'begin': self.begin, 'end': self.end, 'num_grow': self.policy.num_grow,
                'threshold': self.policy.threshold, 'bound': self.policy.bound,
                'max_macs_ratio': self.policy.max_macs_ratio, 'space': self._backbone.space,
                'input_shape': list(self._shape)}

    def _write(self, runner: Runner) -> None:
        if runner.rank == 0:
            self.history.write(self._folder)
            write_files(self._folder, self.structures)

    def before_save_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Put the history and the score sums of a half-done interval into the checkpoint."""
        self.history.iterations = max(self.history.iterations, checkpoint.get('meta', {}).get('iter', 0))
        checkpoint['dyrep'] = {'history': self.history.state(), 'saliency': self.saliency.state_dict(),
                               'structures': dict(self.structures)}

    def after_train(self, runner: Runner) -> None:
        """Close the history with the averages over the whole training."""
        self.history.iterations = runner.iter
        self._write(runner)
        runner.logger.info(report.closing(self.history))
