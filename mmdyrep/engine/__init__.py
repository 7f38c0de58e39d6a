"""DyRep in a runner: when to update, and what else must follow."""
from .hooks import DyRepHook, RandomStateHook

__all__ = ['DyRepHook', 'RandomStateHook']
