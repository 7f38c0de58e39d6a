"""Checkpoints of other code of this kind, made into those of a DyRepBackbone."""
from .checkpoint import Report, convert_checkpoint

__all__ = ['Report', 'convert_checkpoint']
