"""The model of a config, as a runner builds it."""
import copy

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config in the config's scope, with the ``data_preprocessor`` that stands beside it."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = copy.deepcopy(cfg.model)
    # as Runner does: one written beside the model serves it, too
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return MODELS.build(model)
