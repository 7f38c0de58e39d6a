"""When: Algorithm 1 in an mmengine runner."""
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, cast

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from mmdyrep.dynamics import Metric, Moment, Op, name_of
from mmdyrep.models.finding import find_backbone, unwrapped

from .. import report
from ..arriving import follow
from ..batches import LastBatches
from ..calendar import Calendar
from ..calibrating import resumed
from ..checkpoints import make_checkpoints_atomic, resume_from_readable
from ..checks import check_candidates, check_order, check_runner, check_settings, check_space
from ..compiling import compile_anew
from ..costs import cost, counting_shape
from ..distributed import (
    check_agreement,
    check_wrapper,
    from_first_rank,
    mean_statistics,
    remember_comm_hook,
)
from ..following import change, models_of, round_of, take_layout
from ..history import History, check_saved, write_files
from ..layout import layout
from ..loops import epoch_length
from ..memory import explain_out_of_memory
from ..random_state import counts_iterations, watch_fetches
from ..scoring import check_metric, metric_settings, ops_of, readings, score, try_metric
from ..starting import CallCount, image_shape, look_ahead, survey_by_first_batch
from ..stepping import Steppers
from ..updating import Policy
from .after import After


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
        dep (dict, optional): ``threshold``, the lambda of Section 4.2, ``bound``, the greatest importance of a branch
            that is cut (off by default), ``unbiased``, whether the sample deviation is compared with the threshold
            (population by default). None: without Dep. Defaults to dict(threshold=0.02).
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
        dep = dict(dep) if dep is not None else None
        check_settings(interval, begin, end, num_grow, dep, calibration_batches, max_macs_ratio)
        self.interval, self.by_epoch, self.begin, self.end = interval, bool(by_epoch), begin, end
        self.calendar = Calendar(interval, begin, end)
        self.metric, self._metric = name_of(metric), metric
        limits: Dict[str, Any] = dep or {}
        self.policy = Policy(num_grow, limits.get('threshold'), limits.get('bound'), max_macs_ratio,
                             unbiased=bool(limits.get('unbiased')))
        self.saliency = check_metric(metric, calibration_batches, interval, by_epoch)
        self.history = History()
        self.structures: Dict[int, Dict[str, Any]] = {}
        self.batches = LastBatches(calibration_batches)
        self._ops: Optional[List[Op]] = None
        self._shape: Optional[Sequence[int]] = None
        self._active = False  # whether steps count
        self._steps = 0  # of the interval
        self._calls: Optional[int] = None  # forward passes of the backbone for a batch
        self._counting: Optional[CallCount] = None
        self._steppers: Steppers  # from `before_train` on

    # ------------------------------------------------------------------ before training

    def before_run(self, runner: Runner) -> None:
        """Refuse what can't work, before any weight is touched; take part in what follows."""
        if not isinstance(getattr(runner, '_train_loop', None), BaseLoop):
            return  # a test or validation run, whose config may tell of a training that is not built
        check_wrapper(runner)
        self._name, self._backbone = find_backbone(runner.model)
        check_runner(runner, self.by_epoch, self._backbone)
        check_order(runner, self)
        survey_by_first_batch(runner, self._backbone)
        check_candidates(self._backbone)
        if not any(isinstance(hook, After) for hook in runner.hooks):
            runner.register_hook(After(self))
        remember_comm_hook(runner)
        make_checkpoints_atomic(runner)
        resume_from_readable(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Take the structure of a checkpoint, optimizer and EMA brought along; on resume the history, too."""
        name, backbone = find_backbone(runner.model)
        prefix = f'{name}.' if name else ''
        training = isinstance(getattr(runner, 'optim_wrapper', None), OptimWrapper)
        resuming = training and getattr(runner, '_resume', False)
        saved = checkpoint.get('dyrep') if resuming else None
        if saved is not None:
            check_saved(saved)
        before, parameters = backbone.structure, set(unwrapped(runner.model).parameters())
        backbone.match_structure(checkpoint.get('state_dict', checkpoint), prefix)
        follow(runner, backbone.structure != before, parameters)
        if resuming:
            check_space(backbone)
            take_layout(runner, checkpoint)
        if saved is not None:
            self.history = resumed(saved['history'], backbone)
            self.saliency.load_state_dict(saved['saliency'])
            self.structures = dict(saved.get('structures', {}))
            self._steps, self._calls = saved.get('steps', 0), saved.get('calls')

    def before_train(self, runner: Runner) -> None:
        """Log what can grow; rewrite the run's files from what was loaded, those of a later time go."""
        self._folder = Path(runner.work_dir) / 'dyrep'
        self._seed = from_first_rank(runner.seed or 0)
        self.saliency.to(next(self._backbone.parameters()).device)
        if follow(runner):
            compile_anew(runner)
        self._steppers = Steppers(self._backbone, self._observe)
        self._steppers.bind(runner.optim_wrapper.optimizer)
        explain_out_of_memory(runner, lambda: self.history)
        for line in report.opening(self._backbone, self.metric, self.history):
            runner.logger.info(line)
        for line in report.never(runner, self.calendar, self.by_epoch) + report.twins(
                unwrapped(runner.model), self._backbone):
            runner.logger.warning(line)
        self._keeps_all = self.by_epoch and epoch_length(runner) is None
        self._keeps_fetched = not self.by_epoch and counts_iterations(runner)
        if self._keeps_fetched:
            watch_fetches(runner).after.append(lambda index, batch: self._keep(index + 1, 1, batch))
        if runner.rank == 0:
            write_files(self._folder, self.structures, runner.epoch if self.by_epoch else runner.iter)

    # ------------------------------------------------------------------ in the interval

    def _keep(self, now: int, left: int, batch: Any) -> None:
        """Keep a batch of epoch (or iteration) ``now`` if it is among the last before an update."""
        due = self.calendar.next(now)
        if due is not None and (not self.by_epoch or due == now):
            self.batches.keep(due, left if self.by_epoch else due - now + 1, batch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the last batches of the interval; iteration loops do so at each fetch, skipped ones included."""
        self._steppers.bind(runner.optim_wrapper.optimizer)  # hooks may have built another
        if self._shape is None:
            self._start(runner, data_batch)
        now = (runner.epoch if self.by_epoch else runner.iter) + 1
        self._active = self.calendar.next(now) is not None
        if not self._keeps_fetched:
            self._keep(now, 1 if self._keeps_all or not self.by_epoch else cast(int, epoch_length(runner)) - batch_idx,
                       data_batch)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """After the first iteration: so often does one batch go through the backbone."""
        if self._counting is not None:
            self._calls, self._counting = self._counting.stop(), None

    def _start(self, runner: Runner, data_batch: Any) -> None:
        """Look at the backbone's first call; count the costs at the start, which takes the size of a batch."""
        call = look_ahead(runner, self._backbone, data_batch)
        # batches of other ranks may have another size, and the budget would allow other ops
        self._shape = from_first_rank(counting_shape(self._backbone, image_shape(call)))
        try_metric(self._metric, round_of(runner, self._backbone, [data_batch], self._shape, 1))
        if call is None:
            runner.logger.warning(report.NOT_CALLED)
        if self._calls is None:
            self._counting = CallCount(self._backbone)
        now = cost(unwrapped(runner.model), self._backbone, self._shape)
        self.history.begin(runner.iter, now, self._settings())
        report.show(runner, self._backbone, now)
        self._write(runner)

    @torch.no_grad()
    def _observe(self, scale: Any) -> None:
        if not self._active:
            return
        self._steps += 1
        if self._ops is None:
            self._ops = ops_of(self._backbone, also_frozen=True)
        # what is frozen now may learn later in the interval
        self.saliency.observe([op for op in self._ops if op.conv.weight.requires_grad], scale)

    # ------------------------------------------------------------------ the update

    def after(self, runner: Runner, now: int) -> None:
        """Called after every epoch (or iteration), counted from 1."""
        if not self.calendar.due(now):
            return
        self._active = False
        when = f'the update of {"epoch" if self.by_epoch else "iteration"} {now}'
        mean_statistics(models_of(runner))
        check_agreement(models_of(runner), f'before {when}')
        moment = Moment(self._seed, len(self.history.updates))
        round_ = round_of(runner, self._backbone, self.batches.all(), self._shape or (), self._calls or 1)
        scores, told = score(self.saliency, round_, moment, self.history.given_up('expanding'))
        # half precision rounds more
        eps = torch.finfo(next(self._backbone.parameters()).dtype).eps
        policy = replace(self.policy, tolerance=max(self.drift_tolerance, 32 * eps))
        entry = change(runner, round_, scores, policy, moment, self.history.given_up('removing'), self._steppers, when)
        why = report.why_unscored(self._backbone, scores, bool(entry['scores']), self._steps,
                                  readings(self.saliency))
        done = (runner.epoch + 1, runner.iter) if self.by_epoch else (runner.epoch, runner.iter + 1)
        entry = {**dict(zip(('epoch', 'iter'), done)), 'metric': self.metric, **told, **entry,
                 **({'why_unscored': why} if why else {})}
        self.saliency.reset()
        self.batches.clear()
        self._steps, self._ops = 0, None
        self.history.add(entry)
        for line in report.change(entry, self.by_epoch):
            runner.logger.info(line)
        for line in report.alarm(entry, self.by_epoch, policy.tolerance):
            runner.logger.warning(line)
        report.show(runner, self._backbone, entry)
        self.structures[now] = self._backbone.structure
        self._write(runner)

    # ------------------------------------------------------------------ files

    def _settings(self) -> Dict[str, Any]:
        return {**metric_settings(self._metric), 'interval': self.calendar.interval, 'by_epoch': self.by_epoch,
                'begin': self.calendar.begin, 'end': self.calendar.end,
                'num_grow': self.policy.num_grow, 'threshold': self.policy.threshold,
                'bound': self.policy.bound, 'unbiased': self.policy.unbiased,
                'max_macs_ratio': self.policy.max_macs_ratio, **self._backbone.settings,
                'input_shape': list(self._shape or ())}

    def _write(self, runner: Runner) -> None:
        if runner.rank == 0:
            self.history.write(self._folder)
            write_files(self._folder, self.structures)

    def before_save_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Put the history and the score sums of a half-done interval into the checkpoint."""
        self.history.iterations = max(self.history.iterations, checkpoint.get('meta', {}).get('iter', 0))
        checkpoint['dyrep'] = {'history': self.history.state(), 'saliency': self.saliency.state_dict(),
                               'structures': dict(self.structures), 'steps': self._steps, 'calls': self._calls,
                               'groups': layout(runner.optim_wrapper.optimizer, unwrapped(runner.model))}

    def after_train(self, runner: Runner) -> None:
        """Close the history with the averages over the whole training."""
        self.history.iterations = runner.iter
        self._steppers.release()
        self._write(runner)
        runner.logger.info(report.closing(self.history))
