"""When: Algorithm 1 in an mmengine runner."""
import math
from collections import deque
from pathlib import Path
from typing import Any, Deque, Dict, List, Optional, Sequence, Union

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmdyrep.dynamics import METRICS, Moment, Op
from mmdyrep.fileio import write_json
from mmdyrep.models.dyrep_backbone import DyRepBackbone
from mmdyrep.models.finding import find_backbone, unwrapped

from .. import report
from ..history import History, drop_later, structure_path
from ..optimizer import rebuild_groups, refresh_schedulers, scheduler_list
from ..updating import Policy, Round, cost, counting_shape, update


class _After(Hook):
    """Calls at the place of an update: after EMA and schedulers, before checkpoints."""

    priority = 80

    def __init__(self, owner: 'DyRepHook') -> None:
        self.owner = owner

    def after_train_epoch(self, runner: Runner) -> None:
        if self.owner.by_epoch:
            self.owner.after(runner, runner.epoch + 1)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not self.owner.by_epoch:
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
        metric (str): 'random', 'grad_norm', 'snip', 'synflow' or 'snip_bn'. Defaults to 'synflow'.
        num_grow (int): Ops expanded in an update. Defaults to 1.
        dep (dict, optional): ``threshold``, the lambda of Section 4.2, and ``bound``, the greatest importance of
            a branch that is cut (off by default). None: without Dep. Defaults to dict(threshold=0.02).
        calibration_batches (int): Last batches of the interval that BN statistics come from. Defaults to 20.
        max_macs_ratio (float, optional): Budget, times the plain backbone's MACs; an op that would exceed it is
            passed over for the next. Defaults to no budget.
    """

    # before EMAHook (40 to 50) looks at a loaded checkpoint
    priority = 30

    def __init__(self, interval: int = 5, by_epoch: bool = True, begin: int = 0, end: Optional[int] = None,
                 metric: str = 'synflow', num_grow: int = 1, dep: Optional[Dict[str, float]] = dict(threshold=0.02),
                 calibration_batches: int = 20, max_macs_ratio: Optional[float] = None) -> None:
        _require_whole('interval', interval, 1)
        _require_whole('begin', begin, 0)
        _require_whole('num_grow', num_grow, 1)
        _require_whole('calibration_batches', calibration_batches, 1)
        if end is not None:
            _require_whole('end', end, begin + 1)
        if metric not in METRICS:
            raise ValueError(f'DyRepHook: unknown metric {metric!r}; there are {sorted(METRICS)}')
        if max_macs_ratio is not None and not max_macs_ratio > 1:
            raise ValueError(f'DyRepHook: max_macs_ratio is a multiple of the plain backbone, above 1; '
                             f'got {max_macs_ratio!r}')
        dep = dict(dep) if dep is not None else None
        if dep is not None and (set(dep) - {'threshold', 'bound'} or not dep.get('threshold', -1) >= 0):
            raise ValueError(f'DyRepHook: dep takes threshold (at least 0) and bound, or is None; got {dep}')
        self.interval, self.by_epoch, self.begin, self.end = interval, bool(by_epoch), begin, end
        self.metric = metric
        self.calibration_batches = calibration_batches
        self.policy = Policy(num_grow, dep and dep['threshold'], dep and dep.get('bound'), max_macs_ratio)
        self.saliency = METRICS[metric]()
        self.history = History()
        self.batches: Deque[Any] = deque(maxlen=calibration_batches)
        self._ops: Optional[List[Op]] = None
        self._shape: Optional[Sequence[int]] = None

    # ------------------------------------------------------------------ before training

    def before_run(self, runner: Runner) -> None:
        """Refuse what can't work, before any weight is touched; take part in what follows."""
        if not isinstance(getattr(runner, 'optim_wrapper', None), OptimWrapper):
            if getattr(runner, '_train_loop', None) is None:
                return  # a test or validation run
        self._name, self._backbone = find_backbone(runner.model)
        _check_runner(runner, self.by_epoch)
        if not self._backbone.candidates():
            raise ValueError('DyRepHook: no op of the backbone can be expanded: ' + self._backbone.why_none())
        if not any(isinstance(hook, _After) for hook in runner.hooks):
            runner.register_hook(_After(self))

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Take the structure of a checkpoint, the optimizer brought along; on resume the history, too."""
        name, backbone = find_backbone(runner.model)
        prefix = f'{name}.' if name else ''
        training = isinstance(getattr(runner, 'optim_wrapper', None), OptimWrapper)
        resuming = training and getattr(runner, '_resume', False)
        before = backbone.structure
        backbone.match_structure(checkpoint.get('state_dict', checkpoint), prefix)
        if training and backbone.structure != before:
            self._bring_along(runner)
        saved = checkpoint.get('dyrep')
        if resuming:
            _check_space(backbone)
            if saved is not None:
                self.history = History(saved['history'])
                self.saliency.load_state_dict(saved['saliency'])

    def before_train(self, runner: Runner) -> None:
        """Log what can grow; on resume rewrite the run's files from the checkpoint."""
        self._folder = Path(runner.work_dir) / 'dyrep'
        self.saliency.to(next(self._backbone.parameters()).device)
        runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: self._observe())
        for line in report.opening(self._backbone, self.metric):
            runner.logger.info(line)
        if runner.rank == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            drop_later(self._folder, runner.epoch if self.by_epoch else runner.iter)

    # ------------------------------------------------------------------ in the interval

    def _due(self, now: int) -> bool:
        return self.begin < now and (self.end is None or now <= self.end) and (now - self.begin) % self.interval == 0

    def _next(self, now: int) -> Optional[int]:
        """The update that epoch (or iteration) ``now``, counted from 1, works towards."""
        if now <= self.begin:
            return None
        due = self.begin + math.ceil((now - self.begin) / self.interval) * self.interval
        return due if self.end is None or due <= self.end else None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the last batches of the interval."""
        if self._shape is None:
            self._start(runner, data_batch)
        now = (runner.epoch if self.by_epoch else runner.iter) + 1
        due = self._next(now)
        self._active = due is not None
        if due is None:
            return
        left = len(runner.train_dataloader) - batch_idx if self.by_epoch else due - runner.iter
        if (not self.by_epoch or due == now) and left <= self.calibration_batches:
            self.batches.append(data_batch)

    def _start(self, runner: Runner, data_batch: Any) -> None:
        """Count the costs at the start, which takes the size of a batch."""
        model = unwrapped(runner.model)
        shapes = []
        hook = self._backbone.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
        try:
            if self._backbone.input_shape is None:
                Round_ = self._round(runner, [data_batch])
                from mmdyrep.dynamics import eval_output
                eval_output(model, self._backbone, Round_.run, data_batch)
        finally:
            hook.remove()
        self._shape = counting_shape(self._backbone, shapes[0] if shapes else None)
        self.history.begin(runner.iter, cost(model, self._backbone, self._shape), self._settings())
        self._write(runner)

    @torch.no_grad()
    def _observe(self) -> None:
        if not self._active:
            return
        if self._ops is None:
            self._ops = [Op(name, self._backbone.get_submodule(name), self._backbone.norm_behind(name))
                         for name in self._backbone.candidates()]
        self.saliency.observe(self._ops)

    # ------------------------------------------------------------------ the update

    def after(self, runner: Runner, now: int) -> None:
        """Called after every epoch (or iteration), counted from 1."""
        if not self._due(now):
            return
        moment = Moment(runner.seed or 0, len(self.history.updates))
        scores = self.saliency.scores(self._backbone.candidates(), moment)
        runner.model.train()
        entry = update(self._round(runner, list(self.batches)), scores, self.policy, moment)
        self.saliency.reset()
        self.batches.clear()
        if entry['grown'] or entry['cut']:
            self._bring_along(runner)
        entry = {'epoch': runner.epoch + 1 if self.by_epoch else runner.epoch, 'iter': runner.iter + (
            0 if self.by_epoch else 1), 'metric': self.metric, **entry}
        self.history.add(entry)
        for line in report.change(entry, self.by_epoch):
            runner.logger.info(line)
        runner.visualizer.add_scalars({
            'dyrep/macs': entry['macs'].get('model', entry['macs']['backbone']),
            'dyrep/parameters': entry['parameters']['model'],
            'dyrep/blocks': len(self._backbone.structure['ops']),
        }, step=entry['epoch'] if self.by_epoch else entry['iter'])
        if runner.rank == 0:
            write_json(structure_path(self._folder, now), self._backbone.structure)
        self._write(runner)

    def _round(self, runner: Runner, batches: Sequence[Any]) -> Round:
        model = unwrapped(runner.model)

        def run(batch: Any) -> None:
            with runner.optim_wrapper.optim_context(model):
                data = model.data_preprocessor(batch, True)
                model._run_forward(data, mode='loss')

        return Round(model, self._backbone, run, batches, self._shape)

    def _bring_along(self, runner: Runner) -> None:
        """Whatever hangs on the parameters follows the new structure."""
        self._ops = None
        rebuild_groups(runner.optim_wrapper, unwrapped(runner.model), runner.cfg.get('optim_wrapper'))
        refresh_schedulers(scheduler_list(runner.param_schedulers))

    # ------------------------------------------------------------------ files

    def _settings(self) -> Dict[str, Any]:
        return {'metric': self.metric, 'interval': self.interval, 'by_epoch': self.by_epoch, 'begin': self.begin,
                'end': self.end, 'num_grow': self.policy.num_grow, 'threshold': self.policy.threshold,
                'bound': self.policy.bound, 'max_macs_ratio': self.policy.max_macs_ratio,
                'space': self._backbone.space, 'input_shape': list(self._shape)}

    def _write(self, runner: Runner) -> None:
        if runner.rank == 0:
            self.history.write(self._folder)

    def before_save_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Put the history and the score sums of a half-done interval into the checkpoint."""
        self.history.iterations = max(self.history.iterations, checkpoint.get('meta', {}).get('iter', 0))
        checkpoint['dyrep'] = {'history': self.history.state(), 'saliency': self.saliency.state_dict()}

    def after_train(self, runner: Runner) -> None:
        """Close the history with the averages over the whole training."""
        self.history.iterations = runner.iter
        self._write(runner)
        runner.logger.info(report.closing(self.history))


def _require_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f'DyRepHook: {name} must be a whole number of at least {least}, got {value!r}')


def _check_runner(runner: Runner, by_epoch: bool) -> None:
    if type(runner).__name__ == 'FlexibleRunner':
        raise ValueError('DyRepHook does not work with FlexibleRunner: its strategies shard or move the parameters '
                         'that DyRep replaces. Use Runner, with DDP for several GPUs')
    if not isinstance(runner.optim_wrapper, OptimWrapper):
        raise ValueError(f'DyRepHook needs one OptimWrapper, got {type(runner.optim_wrapper).__name__}')
    loop: Union[EpochBasedTrainLoop, IterBasedTrainLoop] = runner.train_loop
    if isinstance(loop, IterBasedTrainLoop) and by_epoch:
        raise ValueError('DyRepHook: by_epoch=True does not fit IterBasedTrainLoop; give by_epoch=False and the '
                         'interval in iterations')
    if isinstance(loop, EpochBasedTrainLoop) and not by_epoch:
        raise ValueError('DyRepHook: by_epoch=False does not fit EpochBasedTrainLoop; give by_epoch=True and the '
                         'interval in epochs')
    if get_world_size() > 1:
        raise ValueError('DyRepHook: training in several processes is not supported yet')
    if any(isinstance(hook, EMAHook) for hook in runner.hooks):
        raise ValueError('DyRepHook: EMAHook is not supported yet, its averaged copy would not follow the structure')


def _check_space(backbone: DyRepBackbone) -> None:
    for name, branches in backbone.structure['ops'].items():
        strange = [branch for branch in branches if branch not in backbone.space]
        if strange:
            raise ValueError(f'the checkpoint has branch {strange[0]!r} at {name}, the config\'s space '
                             f'is {backbone.space}; resume with the space that the run began with')
