"""When: a search of the branches (RepNAS) in an mmengine runner."""
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Union

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from mmdyrep.dynamics import Moment
from mmdyrep.dynamics.architecture import Architecture, Draw
from mmdyrep.models.finding import find_backbone, unwrapped

from .. import search_report as report
from ..arriving import follow
from ..checkpoints import make_checkpoints_atomic, resume_from_readable
from ..checks import check_order, check_runner, check_space, told_by
from ..costs import cost, counting_shape
from ..distributed import (
    check_wrapper,
    from_first_rank,
    remember_comm_hook,
    true_on_all,
)
from ..ema import averaged_copies
from ..following import take_layout
from ..forwards import copied
from ..history import History, write_files
from ..layout import layout
from ..report import show
from ..search_checks import check_parallel, check_saved, check_search, check_settings
from ..searching import close, find_unused, finish, left_out, masked, reset_norms, searchable, slopes
from ..starting import image_shape, look_ahead
from ..stepping import Steppers
from .after import After


@HOOKS.register_module()
class RepNASHook(Hook):
    """Search which branches of a static `DyRepBackbone` to train with (RepNAS, whose blocks are called ODBB).

    In each step C branches of the whole network run: those of the greatest alpha + logistic noise (`Architecture`).
    In the warm-up alpha stays 0, so they are drawn evenly; in the search alpha learns from the same batches as the
    weights. Then the C branches of the greatest alpha stay, the others go, the running statistics of all batch norms
    begin anew, and the training goes on. The original convolution of a block always runs.

    Args:
        warmup (int): Epochs (or iterations) of the warm-up. Defaults to 15.
        search (int): Epochs (or iterations) of the search, behind the warm-up. Defaults to 35.
        by_epoch (bool): Count epochs, as an epoch loop does, or iterations. Defaults to True.
        constraint (int or float): C, the branch number constraint: how many of the searched branches run, or their
            share (rounded down). Defaults to 0.34.
        alpha (dict): ``lr``, ``betas`` and ``weight_decay`` of Adam for alpha. Those that are not given are 1e-4,
            (0.5, 0.999) and 5e-4.
        always (Sequence[str]): Branches that run in any case and are not searched. Defaults to ('residual', ).
        reset_norms (bool): Let running statistics begin anew behind the search. Defaults to True.
        interval (int, optional): A line in the log and an entry in the history every so many epochs (or iterations)
            of the search. Defaults to 1 epoch, or 1000 iterations.
    """

    # before EMAHook (40 to 50) looks at a loaded checkpoint
    priority = 30

    def __init__(self, warmup: int = 15, search: int = 35, by_epoch: bool = True,
                 constraint: Union[int, float] = 0.34, alpha: Optional[Dict[str, Any]] = None,
                 always: Sequence[str] = ('residual', ), reset_norms: bool = True,
                 interval: Optional[int] = None) -> None:
        self.by_epoch = bool(by_epoch)
        interval = (1 if self.by_epoch else 1000) if interval is None else interval
        self.alpha = check_settings(warmup, search, constraint, alpha, always, interval)
        self.warmup, self.search, self.constraint = warmup, search, constraint
        self.always, self.reset_norms, self.interval = tuple(always), bool(reset_norms), interval
        self.border = warmup + search
        self.history = History()
        self.structures: Dict[int, Dict[str, Any]] = {}
        self.architecture: Optional[Architecture] = None  # as long as the search lasts
        self._saved: Optional[Dict[str, Any]] = None
        self._shape: Optional[Sequence[int]] = None
        self._draw: Optional[Draw] = None
        self._learning = False
        self._batch: Any = None
        self._steppers: Steppers  # from `before_train` on

    # ------------------------------------------------------------------ before training

    def before_run(self, runner: Runner) -> None:
        """Refuse what can't work, before any weight is touched; take part in what follows."""
        if not isinstance(getattr(runner, '_train_loop', None), BaseLoop):
            return  # a test or validation run
        with told_by('RepNASHook'):
            check_wrapper(runner)
            self._backbone = find_backbone(runner.model)[1]
            check_runner(runner, self.by_epoch, self._backbone)
            check_order(runner, self)
            remember_comm_hook(runner)
        check_search(runner, self._backbone, self.border, self.by_epoch)
        if not any(isinstance(hook, After) for hook in runner.hooks):
            runner.register_hook(After(self, self.border))
        make_checkpoints_atomic(runner)
        resume_from_readable(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Take the structure of a checkpoint, optimizer and EMA brought along; on resume the search, too.

        In a test of a network whose search was not over, its branches run as they did in evaluation.
        """
        name, backbone = find_backbone(runner.model)
        training = isinstance(getattr(runner, 'optim_wrapper', None), OptimWrapper)
        resuming = training and getattr(runner, '_resume', False)
        saved: Any = checkpoint.get('dyrep')
        if resuming:
            check_saved(saved, self._own_settings())
        before, parameters = backbone.structure, set(unwrapped(runner.model).parameters())
        backbone.match_structure(checkpoint.get('state_dict', checkpoint), f'{name}.' if name else '')
        follow(runner, backbone.structure != before, parameters)
        search = (saved or {}).get('repnas') or {}
        if resuming:
            check_space(backbone)
            take_layout(runner, checkpoint)
            self.history = History(saved['history'])
            self.structures = dict(saved['structures'])
            self._saved = search['architecture']
        elif not training and search.get('evaluation') is not None:
            keys, mask = ([tuple(key) for key in search[part]] for part in ('searched', 'evaluation'))
            close([backbone], keys, evaluation=mask)

    def before_train(self, runner: Runner) -> None:
        """Begin the search or go on with it, log what it is about, write the run's files from what was loaded."""
        self._folder = Path(runner.work_dir) / 'dyrep'
        self._seed = from_first_rank(runner.seed or 0)
        follow(runner)
        with told_by('RepNASHook'):
            self._steppers = Steppers(self._backbone, self._observe)
            self._steppers.bind(runner.optim_wrapper.optimizer)
        if self._now(runner) < self.border:
            check_parallel(runner)
            self._begin(runner)
            find_unused(runner)
        for line in report.opening(self, self._now(runner)):
            runner.logger.info(line)
        if runner.rank == 0:
            write_files(self._folder, self.structures, self._now(runner))

    def _begin(self, runner: Runner) -> None:
        # what is frozen may have changed since the search began
        keys = searchable(self._backbone, self.always) if self._saved is None else self._saved['keys']
        if not keys:
            raise ValueError(f'RepNASHook: no branch is there to be searched: besides {", ".join(self.always)} the '
                             'blocks have none, or none that learns')
        generator = Moment(self._seed, 0).generator('order of equal alphas')
        self.architecture = Architecture(keys, self.constraint, **self.alpha, generator=generator)
        if self._saved is not None:
            self.architecture.load_state_dict(self._saved)
        self._models = [self._backbone, *(copy.backbone for copy in averaged_copies(runner))]

    # ------------------------------------------------------------------ in the search

    def _now(self, runner: Runner) -> int:
        return runner.epoch if self.by_epoch else runner.iter

    def phase(self, done: int) -> str:
        """'warm-up', 'search' or 'training', of the epoch (or iteration) that follows so many."""
        return 'warm-up' if done < self.warmup else 'search' if done < self.border else 'training'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Sample the branches of a step; behind the search, let the statistics begin anew."""
        with told_by('RepNASHook'):
            self._steppers.bind(runner.optim_wrapper.optimizer)  # hooks may have built another
            now = self._now(runner)
            self._learning = self.phase(now) == 'search'
            if self.architecture is not None:
                # one sample for all iterations whose gradients make a step; nothing of it needs to be saved
                step = runner.iter // getattr(runner.optim_wrapper, '_accumulative_counts', 1)
                self._draw = self.architecture.draw(Moment(self._seed, step).generator('noise'))
                self._close(self.architecture, self._draw)
                if now + 1 == self.border:
                    self._batch = copied(data_batch)
            elif now == self.border and self.reset_norms and (batch_idx == 0 or not self.by_epoch):
                runner.logger.info(report.reset(reset_norms(runner)))
            if self._shape is None:
                self._start(runner, data_batch)

    def _close(self, architecture: Architecture, draw: Draw) -> None:
        masks = draw.mask, architecture.draw().mask
        close(self._models, architecture.keys, *map(architecture.chosen, masks))

    def _start(self, runner: Runner, data_batch: Any) -> None:
        """Look at the backbone's first call; count the costs at the start, which takes the size of a batch."""
        call = look_ahead(runner, self._backbone, data_batch)
        self._shape = from_first_rank(counting_shape(self._backbone, image_shape(call)))
        now = cost(unwrapped(runner.model), self._backbone, self._shape)
        structure = self._structure()
        self.history.begin(runner.iter, {**now, 'structure': structure['ops']},
                           {**self._own_settings(), **self._backbone.settings, 'input_shape': list(self._shape)})
        if self.architecture is not None and not self.structures:
            self.structures[self._now(runner)] = structure
        show(runner, self._backbone, now)
        self._write(runner)

    def _structure(self) -> Dict[str, Any]:
        """What runs in evaluation."""
        found = self._backbone.structure
        if self.architecture is None:
            return found
        architecture = self.architecture
        return masked(found, architecture.keys, architecture.chosen(architecture.draw().mask))

    @torch.no_grad()
    def _observe(self, scale: Any) -> None:
        if self.architecture is None or self._draw is None or not self._learning:
            return
        running = self.architecture.chosen(self._draw.mask)
        self.architecture.step(slopes(self._backbone, running), self._draw, scale)
        self._close(self.architecture, self._draw)

    # ------------------------------------------------------------------ the end of the search

    def after(self, runner: Runner, now: int) -> None:
        """Called after every epoch (or iteration), counted from 1."""
        if self.architecture is None or (now != self.border and (now % self.interval or now <= self.warmup)):
            return
        architecture, last = self.architecture, now == self.border
        if not true_on_all(torch.equal(from_first_rank(architecture.alpha.detach()), architecture.alpha)):
            raise RuntimeError(f'RepNASHook: the ranks hold different alphas after {self._unit} {now}: they must get '
                               'the same gradients; leave wrapping the model to the runner')
        structure, before = self._structure(), self.structures[max(self.structures)]
        done = (runner.epoch + 1, runner.iter) if self.by_epoch else (runner.epoch, runner.iter + 1)
        entry = {**dict(zip(('epoch', 'iter'), done)), 'phase': 'end of the search' if last else 'search',
                 'alpha': [[*key, value] for key, value in architecture.ranking()], 'running': architecture.count,
                 **report.changes(before['ops'], structure['ops']), 'drift': None, 'seconds': 0.0}
        if last:
            entry['dropped'] = left_out(self._backbone, architecture)
            entry.update(finish(runner, self._backbone, entry['dropped'], self._batch, self._shape or (),
                                self._steppers, f'the search, {self._unit} {now}'))
            self.architecture = self._draw = self._batch = None
        entry.update(cost(unwrapped(runner.model), self._backbone, self._shape or ()))
        self.history.add(entry)
        for line in report.lines(entry, self._unit, structure['ops'], self.reset_norms):
            runner.logger.info(line)
        show(runner, self._backbone, entry)
        self.structures[now] = structure
        self._write(runner)

    # ------------------------------------------------------------------ files

    @property
    def _unit(self) -> str:
        return 'epoch' if self.by_epoch else 'iteration'

    def _own_settings(self) -> Dict[str, Any]:
        return {'method': 'RepNAS', 'by_epoch': self.by_epoch, 'warmup': self.warmup, 'search': self.search,
                'constraint': self.constraint, 'alpha': {**self.alpha, 'betas': list(self.alpha['betas'])},
                'always': list(self.always), 'reset_norms': self.reset_norms, 'interval': self.interval}

    def _write(self, runner: Runner) -> None:
        if runner.rank == 0:
            self.history.write(self._folder)
            write_files(self._folder, self.structures)

    def before_save_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Put the search and the history into the checkpoint."""
        self.history.iterations = max(self.history.iterations, checkpoint.get('meta', {}).get('iter', 0))
        search: Dict[str, Any] = {'settings': self._own_settings(), 'architecture': None}
        if self.architecture is not None:
            architecture = self.architecture
            search.update(architecture=architecture.state_dict(), searched=[list(key) for key in architecture.keys],
                          evaluation=[list(key) for key in architecture.chosen(architecture.draw().mask)])
        checkpoint['dyrep'] = {'history': self.history.state(), 'structures': dict(self.structures),
                               'groups': layout(runner.optim_wrapper.optimizer, unwrapped(runner.model)),
                               'repnas': search}

    def after_train(self, runner: Runner) -> None:
        """Close the history with the averages over the whole training."""
        self.history.iterations = runner.iter
        self._steppers.release()
        self._write(runner)
        runner.logger.info(report.closing(self.history))
