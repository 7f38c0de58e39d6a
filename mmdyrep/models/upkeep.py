"""What has to hold of a backbone with blocks after every change of it, and whenever modes are set."""
from typing import TYPE_CHECKING

import torch._dynamo

from mmdyrep.reparam import left_out, surgery

from . import starting
from .guard import watch

if TYPE_CHECKING:
    from .dyrep_backbone import DyRepBackbone


def leaves_out(backbone: 'DyRepBackbone', name: str) -> bool:
    """Whether the norm behind this op is not applied while it is a block (``keep_norm``)."""
    return not backbone._dyrep.keep_norm and backbone.survey.ops.get(name) is not None


def changed(backbone: 'DyRepBackbone') -> None:
    """Blocks have come, gone or changed: modes, norms behind and who else must know."""
    fix(backbone)
    settle(backbone)
    watch(backbone)
    starting.join_initialization(backbone)


def mode_set(backbone: 'DyRepBackbone') -> None:
    """Norms in a block follow the one behind it, frozen statistics included."""
    for name, block in surgery.outer_blocks(backbone).items():
        follower = backbone.norm_behind(name)
        if follower is not None:
            block.follow(follower)
    fix(backbone)
    settle(backbone)


def before_call(backbone: 'DyRepBackbone') -> None:
    """Refuse to run after a tool has fused norms that blocks need into other convolutions.

    Raises:
        RuntimeError: With the norm that is gone.
    """
    # looking is nothing that could be compiled
    if torch._dynamo.is_compiling():
        return
    if not backbone.training:  # fused for inference
        for name in surgery.outer_blocks(backbone):
            backbone.norm_behind(name)
    elif not left_out.all_left_out(backbone, backbone._dyrep.left_out):
        settle(backbone)


def fix(backbone: 'DyRepBackbone') -> None:
    """Let the norms of blocks work with statistics that stay, where they are to (``online``)."""
    for block in surgery.outer_blocks(backbone).values() if backbone._dyrep.online else ():
        block.fix()


def settle(backbone: 'DyRepBackbone') -> None:
    """Leave out the norms behind blocks, where they are to be (``keep_norm``)."""
    # without a survey there is no block yet, and it is perhaps being made
    if not backbone._dyrep.keep_norm and backbone._dyrep.survey is not None:
        backbone._dyrep.left_out = left_out.settle(backbone, backbone.survey.ops)
