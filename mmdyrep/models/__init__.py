"""Backbones for the registries of OpenMMLab."""
from .dyrep_backbone import DyRepBackbone

__all__ = ['DyRepBackbone']
