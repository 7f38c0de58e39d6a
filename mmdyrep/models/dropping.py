"""Branches that a search leaves out are taken out of a wrapped backbone."""
from typing import Sequence

from mmdyrep.reparam import dropping

from .dyrep_backbone import DyRepBackbone


def drop(backbone: DyRepBackbone, name: str, branches: Sequence[str]) -> None:
    """Take branches out of a block with what they compute; without one left the op is plain (`reparam.dropping`).

    Args:
        backbone (DyRepBackbone): Changed in place.
        name (str): A block.
        branches (Sequence[str]): Branches of it, not ``kxk``.
    """
    dropping.drop(backbone, name, branches, backbone.survey.ops)
    backbone._changed()
