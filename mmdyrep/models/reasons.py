"""What can be expanded and removed now, and why the rest can't."""
from typing import TYPE_CHECKING, Dict, List, Sequence, Union, cast

from torch import nn

from mmdyrep import reparam
from mmdyrep.reparam import Block, structure as structures, surgery
from mmdyrep.reparam.handing import why_not_now

from .settings import Settings

if TYPE_CHECKING:
    from .dyrep_backbone import DyRepBackbone


def why_not(backbone: 'DyRepBackbone', name: str, settings: Settings) -> str:
    """Why an op, nested or not, is no candidate; empty if it is one."""
    op, depth = backbone.get_submodule(name), structures.depth_of(name, backbone.survey.ops)
    if settings.excludes(name):
        return 'excluded'
    changed = why_not_now(backbone, name)
    if changed:
        return changed
    if not cast(nn.Conv2d, op).weight.requires_grad:
        return 'frozen'
    if depth >= settings.max_depth:
        return f'lies in {depth} blocks already (max_depth={settings.max_depth})'
    if not reparam.fitting(settings.space, surgery.geometry_of(op)):
        misfits = [f'{branch} {reparam.BRANCHES[branch].misfit(surgery.geometry_of(op))}'
                   for branch in settings.space if branch != 'kxk']
        return f'no branch of the space fits: {"; ".join(misfits)}'
    return ''


def ops_of(backbone: 'DyRepBackbone') -> List[str]:
    """All ops that are eligible, those nested in blocks among them."""
    return [name for op in backbone.survey.ops for name in structures.ops_within(backbone, op)]


def reasons_of(backbone: 'DyRepBackbone') -> Dict[str, str]:
    """Convolutions in the order of the network, and why each is no candidate; empty for those that are."""
    if backbone._dyrep.deployed:
        return {}
    found = {name: why_not(backbone, name, backbone._dyrep) for name in ops_of(backbone)
             if not isinstance(backbone.get_submodule(name), Block)}
    found.update(backbone.survey.reasons)
    order = {name: place for place, (name, _) in enumerate(backbone.named_modules())}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], -1)))


def require_op(backbone: 'DyRepBackbone', name: str) -> reparam.Geometry:
    """Geometry of an op, a convolution or a block.

    Raises:
        ValueError: If it can't be expanded.
    """
    if backbone._dyrep.deployed or name not in ops_of(backbone):
        reason = backbone.survey.reasons.get(name, 'there is no convolution of this name that can be expanded')
        raise ValueError(f'{name} can not be expanded: {reason}')
    return surgery.geometry_of(backbone.get_submodule(name))


def require_branches(backbone: nn.Module, name: str, branches: Union[str, Sequence[str]]) -> List[str]:
    """Branches of a block that can be removed.

    Raises:
        ValueError: If there is no such block or branch.
    """
    branches = [branches] if isinstance(branches, str) else list(branches)
    block = reparam.blocks_of(backbone).get(name)
    if block is None:
        raise ValueError(f'{name} is no block; there are {list(reparam.blocks_of(backbone))}')
    wrong = [branch for branch in branches if branch not in block.added]
    if wrong or not branches:
        raise ValueError(f'{name}: no branch {wrong} to remove, it has {block.added} beside the original')
    return branches
