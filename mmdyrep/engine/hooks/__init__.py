"""Hooks for mmengine's runner."""
from .dyrep_hook import DyRepHook
from .random_state_hook import RandomStateHook
from .repnas_hook import RepNASHook

__all__ = ['DyRepHook', 'RandomStateHook', 'RepNASHook']
