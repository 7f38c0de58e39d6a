"""Backbones for the registries of OpenMMLab."""
from .dyrep_backbone import DyRepBackbone
from .mobilenet_v1 import MobileNetV1

__all__ = ['DyRepBackbone', 'MobileNetV1']
