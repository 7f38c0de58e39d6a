"""Statistics of blocks that stay fixed between updates, and the mode of a run that goes on."""
from typing import Callable, List, Sequence

from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.dynamics import NotReached
from mmdyrep.models import DyRepBackbone
from mmdyrep.reparam import Statistics
from mmdyrep.reparam.online import norms_in
from mmdyrep.reparam.statistics import restate
from mmdyrep.reparam.surgery import outer_blocks

from .ema import Averaged
from .history import History


def calibrate(backbone: DyRepBackbone, copies: Sequence[Averaged],
              measure: Callable[[Sequence[_BatchNorm]], List[Statistics]]) -> None:
    """With ``online``, give the norms of all blocks the statistics of now; the function is kept.

    Frozen blocks are left alone. If no batch reaches one of the norms, all keep what they have.

    Args:
        backbone (DyRepBackbone): Any.
        copies (Sequence[Averaged]): Averaged copies, which follow.
        measure (callable): Measures norms, none without ``online``, in the mode that they are in; called once.
    """
    blocks = outer_blocks(backbone).values() if backbone.online else ()
    norms = [norm for block in blocks for norm in norms_in(block) if norm.weight.requires_grad]
    try:
        found = measure(norms)
    except NotReached:
        return
    for norm, statistics in zip(norms, found):
        restate(norm, statistics)
    for copy in copies if norms else ():
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
