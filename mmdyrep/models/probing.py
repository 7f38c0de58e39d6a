"""The probe's input for a backbone of unknown channels and size."""
from typing import List, Optional, Tuple

import torch
from torch import nn

from mmdyrep.reparam import Survey, probe, survey

SIZES = ((128, 128), (224, 224))


def input_shapes(model: nn.Module, wanted: Optional[Tuple[int, ...]] = None) -> List[Tuple[int, int, int]]:
    """Shapes (C, H, W) to try, the likeliest first.

    Args:
        model (nn.Module): Backbone.
        wanted (tuple, optional): (H, W) or (C, H, W) that the user asks for.
    """
    if wanted is not None and len(wanted) == 3:
        return [tuple(wanted)]
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    channels = list(dict.fromkeys([first, 3, 1]))
    sizes = [tuple(wanted)] if wanted is not None else SIZES
    return [(c, *size) for size in sizes for c in channels]


def zeros(model: nn.Module, shape: Tuple[int, ...]) -> torch.Tensor:
    """Batch of one zero image, with the device and dtype of the model."""
    like = next(model.parameters())
    return like.new_zeros(1, *shape).detach()


def probe_backbone(model: nn.Module, wanted: Optional[Tuple[int, ...]] = None) -> Survey:
    """Survey a backbone with the first input shape that its forward takes.

    Raises:
        RuntimeError: If it takes none of them, with the error of the likeliest.
    """
    tried, first = [], None
    for shape in input_shapes(model, wanted):
        try:
            return survey(model, probe(model, zeros(model, shape)))
        except Exception as error:  # a forward may fail in any way
            tried.append(shape)
            first = first or error
    raise RuntimeError(f'{type(model).__name__} could not be probed for its convolutions with inputs of shape '
                       f'{tried}; give the shape that it takes as input_shape=(C, H, W). '
                       f'With the first of them: {type(first).__name__}: {first}') from first
