"""Statistics of blocks that stay fixed between updates, and the mode of a run that goes on."""
from typing import Sequence

from mmdyrep.dynamics import Calibration
from mmdyrep.dynamics.calibration import NotReached
from mmdyrep.models import DyRepBackbone
from mmdyrep.reparam.online import norms_in
from mmdyrep.reparam.statistics import restate
from mmdyrep.reparam.surgery import outer_blocks

from .ema import Averaged
from .history import History


def calibrate(backbone: DyRepBackbone, copies: Sequence[Averaged], measure: Calibration) -> None:
    """Give the norms of all blocks the statistics of now, in one pass over the batches; the function is kept.

    Frozen blocks are left alone. If no batch reaches one of the norms, all keep what they have.

    Args:
        backbone (DyRepBackbone): With ``online``.
        copies (Sequence[Averaged]): Averaged copies, which follow.
        measure (Calibration): On the kept batches.
    """
    norms = [norm for block in outer_blocks(backbone).values() for norm in norms_in(block)
             if norm.weight.requires_grad]
    if not norms:
        return
    try:
        found = measure(norms, fixed=True)
    except NotReached:
        return
    for norm, statistics in zip(norms, found):
        restate(norm, statistics)
    for copy in copies:
        copy.take_statistics(backbone)


def resumed(state: dict, backbone: DyRepBackbone) -> History:
    """History of a run that goes on; refused in another mode than it began in.

    Raises:
        ValueError: With the setting to choose.
    """
    history = History(state)
    began = bool(history.settings.get('online', False))
    if began != backbone.online:
        raise ValueError(f'the checkpoint is of a run with DyRepBackbone(online={began}), the config has '
                         f'online={backbone.online}. A run goes on only as it began: set online={began} to resume, or '
                         'start a new run from its weights with load_from')
    return history
