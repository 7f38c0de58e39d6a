"""Whatever hangs on a runner's model follows a change of its structure."""
from typing import Any, Collection, Dict, List, Mapping, Optional, Sequence

from mmengine.runner import Runner
from torch import nn
from torch.nn import Parameter

from mmdyrep.dynamics import Key, Moment
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.finding import unwrapped

from .compiling import compile_anew
from .distributed import check_agreement, wrap_anew
from .ema import averaged_copies
from .forwards import runner_forward, runner_loss
from .layout import arrange, layout_of
from .modes import modes_kept
from .optimizer import rebuild_groups, refresh_schedulers, scheduler_list
from .restoring import all_or_nothing
from .stepping import Steppers
from .updating import Drifted, Policy, Round, undone, update


def bring_along(runner: Runner, before: Optional[Collection[Parameter]], steppers: Optional[Steppers] = None) -> None:
    """Optimizer and schedulers.

    Args:
        runner (Runner): Its model has changed.
        before (Collection[Parameter], optional): What the model had, where that is known.
        steppers (Steppers, optional): Optimizers beside the runner's.
    """
    for line in rebuild_groups(runner.optim_wrapper, unwrapped(runner.model), runner.cfg.get('optim_wrapper'), before):
        runner.logger.warning(f'DyRep: {line}')
    if steppers is not None:
        steppers.follow()
    refresh_schedulers(scheduler_list(runner.param_schedulers))


def take_layout(runner: Runner, checkpoint: Dict[str, Any]) -> None:
    """Parameters take the places in the optimizer's groups that a checkpoint's optimizer state has for them."""
    where = runner.optim_wrapper.optimizer, unwrapped(runner.model)
    wanted = layout_of(checkpoint, *where, runner.cfg.get('optim_wrapper'))
    if wanted is not None:
        arrange(*where, wanted)
        refresh_schedulers(scheduler_list(runner.param_schedulers))


def models_of(runner: Runner) -> List[nn.Module]:
    """The model and its averaged copies."""
    return [unwrapped(runner.model), *(copy.model for copy in averaged_copies(runner))]


def round_of(runner: Runner, backbone: DyRepBackbone, batches: Sequence[Any], shape: Sequence[int],
             calls: int) -> Round:
    """What an update of a runner's model works with; its modes are those of the training.

    Args:
        runner (Runner): Between two iterations.
        backbone (DyRepBackbone): Of its model.
        batches (Sequence): To calibrate on.
        shape (Sequence[int]): (C, H, W) that MACs are counted at.
        calls (int): Forward passes through the backbone that one batch makes.
    """
    if not runner.model.training:
        runner.model.train()
    return Round(unwrapped(runner.model), backbone, runner_forward(runner), batches, shape, averaged_copies(runner),
                 runner_forward(runner, exact=True), calls, runner_loss(runner))


def change(runner: Runner, round_: Round, scores: Mapping[Key, float], policy: Policy, moment: Moment,
           uncut: Collection[str], steppers: Steppers, when: str) -> Dict[str, Any]:
    """Update a runner's model as a whole and bring all along; what moves the output is undone.

    Args:
        runner (Runner): Between two iterations.
        round_ (Round): Made of it.
        scores (Mapping[Key, float]): Of the ops that may be expanded.
        policy (Policy): Settings.
        moment (Moment): For random draws.
        uncut (Collection[str]): Blocks that keep their branches.
        steppers (Steppers): Whatever steps the parameters.
        when (str): For messages.

    Returns:
        dict: Entry of the history, without epoch and iteration.
    """
    backbone = round_.backbone
    changing, parameters = [backbone, *(copy.backbone for copy in round_.copies)], set(round_.model.parameters())
    with modes_kept(runner, backbone):
        try:
            with all_or_nothing(changing, runner.optim_wrapper, scheduler_list(runner.param_schedulers)):
                entry = update(round_, scores, policy, moment, uncut)
                if entry['grown'] or entry['cut']:
                    bring_along(runner, parameters, steppers)
        except Drifted as moved:
            entry = undone(round_, moved)
        finally:
            for copy in round_.copies:
                copy.relist()
        check_agreement(models_of(runner), f'after {when}')
        if entry['grown'] or entry['cut']:
            wrap_anew(runner)
            compile_anew(runner)
    return entry
