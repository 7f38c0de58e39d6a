"""DyRep in a runner: when to update, and what else must follow."""
from mmdyrep.harmless import allow_harmless_types

from .hooks import DyRepHook, RandomStateHook, RepNASHook

# torch >= 2.6 would refuse to resume from mmengine's own checkpoints
allow_harmless_types()

__all__ = ['DyRepHook', 'RandomStateHook', 'RepNASHook']
