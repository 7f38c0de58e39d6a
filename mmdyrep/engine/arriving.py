"""A structure that came in with weights, and what must follow it before the first iteration."""
from typing import Collection, Optional

from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.nn import Parameter

from mmdyrep.models.finding import find_backbone

from .distributed import wrap_anew
from .ema import averaged_copies
from .following import bring_along
from .optimizer import lacks_parameters


def follow(runner: Runner, changed: bool = False, before: Optional[Collection[Parameter]] = None) -> bool:
    """Let EMA, optimizer and parallel wrapper follow the structure that a checkpoint or initial weights have brought.

    The runner builds them before it initializes weights, and the ``init_cfg`` of the whole model, or of any part of
    it, may name an augmented file.

    Args:
        runner (Runner): In training, or in a test.
        changed (bool): Do so in any case. Defaults to False: if the optimizer does not know all parameters.
        before (Collection[Parameter], optional): What the model had, where that is known.

    Returns:
        bool: Whether parameters have changed.
    """
    backbone = find_backbone(runner.model)[1]
    for copy in averaged_copies(runner):
        copy.match(backbone)
    optim_wrapper = getattr(runner, 'optim_wrapper', None)
    if not isinstance(optim_wrapper, OptimWrapper):
        return False
    changed = changed or lacks_parameters(optim_wrapper.optimizer, backbone)
    if changed:
        bring_along(runner, before)
        wrap_anew(runner)
    return changed
