"""The one DyRepBackbone of a model."""
from typing import Tuple, cast

from mmengine.model import is_model_wrapper
from torch import nn

from .dyrep_backbone import DyRepBackbone


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a parallel wrapper."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def find_backbone(model: nn.Module) -> Tuple[str, DyRepBackbone]:
    """Name and module of the one DyRepBackbone of a model.

    Raises:
        ValueError: If there is none, or more than one.
    """
    found = [(name, module) for name, module in unwrapped(model).named_modules() if isinstance(module, DyRepBackbone)]
    if not found:
        raise ValueError("the model has no DyRepBackbone. Wrap its backbone: "
                         "backbone=dict(type='DyRepBackbone', backbone=dict(...))")
    if len(found) > 1:
        raise ValueError(f'the model has {len(found)} DyRepBackbones ({[name for name, _ in found]}); '
                         'exactly one is supported')
    return found[0]


def is_classifier(model: nn.Module) -> bool:
    """Whether the model is a classifier of mmpretrain, whose forward on a tensor gives logits."""
    return any(kind.__name__ == 'BaseClassifier' for kind in type(model).__mro__)
