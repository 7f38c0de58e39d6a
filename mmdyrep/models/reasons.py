"""Why an op that can be expanded as such is no candidate now."""
from torch import nn

from mmdyrep import reparam
from mmdyrep.reparam import structure as structures, surgery
from mmdyrep.reparam.handing import why_not_now

from .settings import Settings


def why_not(backbone: nn.Module, name: str, settings: Settings) -> str:
    """Why an op, nested or not, is no candidate; empty if it is one."""
    op, depth = backbone.get_submodule(name), structures.depth_of(name, settings.survey.ops)
    if settings.excludes(name):
        return 'excluded'
    changed = why_not_now(backbone, name)
    if changed:
        return changed
    if not op.weight.requires_grad:
        return 'frozen'
    if depth >= settings.max_depth:
        return f'lies in {depth} blocks already (max_depth={settings.max_depth})'
    if not reparam.fitting(settings.space, surgery.geometry_of(op)):
        misfits = [f'{branch} {reparam.BRANCHES[branch].misfit(surgery.geometry_of(op))}'
                   for branch in settings.space if branch != 'kxk']
        return f'no branch of the space fits: {"; ".join(misfits)}'
    return ''
