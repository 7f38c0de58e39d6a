"""Statistics of blocks that stay fixed between updates, and the mode of a run that goes on."""
import ast
from typing import Any, Callable, Dict, List, Optional, Sequence

from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.dynamics import NotReached
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.finding import unwrapped
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
    _check_mode(bool(history.settings.get('online', False)), backbone)
    return history


def check_resumed(runner: Runner, checkpoint: Dict[str, Any]) -> None:
    """Refuse to go on in another mode than a checkpoint's config tells of; without DyRepHook there is no history.

    Raises:
        ValueError: With the setting to choose.
    """
    text = checkpoint.get('meta', {}).get('cfg')
    if not getattr(runner, '_resume', False) or not isinstance(text, str):
        return
    backbones = [module for module in unwrapped(runner.model).modules() if isinstance(module, DyRepBackbone)]
    began = _online_in(text)
    if backbones and began is not None:
        _check_mode(began, backbones[0])


def _online_in(text: str) -> Optional[bool]:
    """Setting of the DyRepBackbone in a config, which is read, not run; None if there is none."""
    try:
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    except SyntaxError:
        return None
    for call in calls:
        settings = {keyword.arg: getattr(keyword.value, 'value', None) for keyword in call.keywords}
        if str(settings.get('type')).rpartition('.')[2] == 'DyRepBackbone':
            return bool(settings.get('online', False))
    return None


def _check_mode(began: bool, backbone: DyRepBackbone) -> None:
    if began != backbone.online:
        raise ValueError(f'the checkpoint is of a run with DyRepBackbone(online={began}), the config has '
                         f'online={backbone.online}. A run goes on only as it began: set online={began} to resume, or '
                         'start a new run from its weights with load_from')
