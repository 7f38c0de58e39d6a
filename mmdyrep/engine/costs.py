"""MACs and parameters of the network as it is, and the budget of an update."""
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from torch import nn

from mmdyrep.dynamics import Key, macs
from mmdyrep.models import DyRepBackbone
from mmdyrep.models.finding import is_classifier
from mmdyrep.models.probing import input_shapes, inputs_for, zeros
from mmdyrep.reparam import fitting
from mmdyrep.reparam.surgery import geometry_of


def parts(key: Key) -> Tuple[str, Optional[List[str]]]:
    """Op of a score, and the branches that it is of; None: all that are missing."""
    return (key, None) if isinstance(key, str) else (key[0], [key[1]])


def budget(backbone: DyRepBackbone, shape: Sequence[int],
           ratio: Optional[float]) -> Tuple[Callable[[Key], int], Optional[float]]:
    """Cost of expanding an op, and the MACs that may still be added; None without a ratio."""
    if ratio is None:
        return (lambda key: 0), None
    args, kwargs = inputs_for(backbone, shape)
    counted = macs.count(backbone, *args, **kwargs)
    base = macs.count(backbone.to_plain(), *args, **kwargs).total

    def extra(key: Key) -> int:
        name, wanted = parts(key)
        geometry = geometry_of(backbone.get_submodule(name))
        return macs.of_branches(wanted or fitting(backbone.space, geometry), geometry, counted.inputs[name][2:])

    return extra, ratio * base - counted.total


def cost(model: nn.Module, backbone: DyRepBackbone, shape: Sequence[int]) -> Dict[str, Dict[str, int]]:
    """MACs and parameters of the backbone and, where it can be counted (classifiers), of the model.

    ``macs`` are those of the branches, as the paper counts; with ``online`` also ``executed``, those of training.

    Args:
        model (nn.Module): The whole model.
        backbone (DyRepBackbone): Its backbone.
        shape (Sequence[int]): (C, H, W) of the input.
    """
    args, kwargs = inputs_for(backbone, shape)
    counted = {'backbone': macs.count(backbone, *args, **kwargs).total}
    parameters = {'backbone': macs.parameters(backbone), 'model': macs.parameters(model)}
    if model is not backbone and is_classifier(model) and not kwargs and len(args) == 1:
        counted['model'] = macs.count(model, zeros(backbone, shape), mode='tensor').total
    if not backbone.online:
        return {'macs': counted, 'parameters': parameters}
    own = macs.executed(backbone, *args, **kwargs)
    executed = {part: own + value - counted['backbone'] for part, value in counted.items()}
    return {'macs': counted, 'executed': executed, 'parameters': parameters}


def counting_shape(backbone: DyRepBackbone, batch_shape: Optional[Sequence[int]] = None) -> Sequence[int]:
    """(C, H, W) that MACs are counted at: `input_shape`, else the first batch's, else 224x224."""
    wanted = backbone.input_shape
    if wanted is None and batch_shape is not None:
        return tuple(batch_shape[-3:])
    return input_shapes(backbone, wanted or (224, 224))[0]
