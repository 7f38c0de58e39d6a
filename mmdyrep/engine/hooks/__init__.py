"""Hooks for mmengine's runner."""
from .dyrep_hook import DyRepHook
from .random_state_hook import RandomStateHook

__all__ = ['DyRepHook', 'RandomStateHook']
