"""Hooks for mmengine's runner."""
from .dyrep_hook import DyRepHook

__all__ = ['DyRepHook']
