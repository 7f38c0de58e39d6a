"""The probe's input for a backbone of unknown channels and size."""
import inspect
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, cast

import torch
from torch import nn

from mmdyrep.reparam import Survey, examine
from mmdyrep.reparam.probe import tensors_in

if TYPE_CHECKING:
    from .dyrep_backbone import DyRepBackbone

SIZES = [(128, 128), (224, 224)]
# of a forward pass, positional and by keyword
Inputs = Tuple[Tuple[Any, ...], Mapping[str, Any]]


def input_shapes(model: nn.Module, wanted: Optional[Tuple[int, ...]] = None) -> List[Tuple[int, int, int]]:
    """Shapes (C, H, W) to try, the likeliest first.

    Args:
        model (nn.Module): Backbone.
        wanted (tuple, optional): (H, W) or (C, H, W) that the user asks for.
    """
    if wanted is not None and len(wanted) == 3:
        return [cast(Tuple[int, int, int], tuple(wanted))]
    first = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    channels = list(dict.fromkeys([first, 3, 1]))
    sizes = [cast(Tuple[int, int], tuple(wanted))] if wanted is not None else SIZES
    return [(c, *size) for size in sizes for c in channels]


def zeros(model: nn.Module, shape: Sequence[int]) -> torch.Tensor:
    """Batch of one zero image, with the device and dtype of the model."""
    like = next(model.parameters())
    return like.new_zeros(1, *shape).detach()


class NotProbed(RuntimeError):
    """The forward of a backbone takes none of the inputs that were tried."""


def probe_backbone(model: nn.Module, wanted: Optional[Tuple[int, ...]] = None) -> Survey:
    """Survey a backbone with the first input shape that its forward takes.

    Raises:
        NotProbed: If it takes none of them, with the error of the likeliest.
    """
    tried, first = [], None
    for shape in input_shapes(model, wanted):
        try:
            return examine(model, zeros(model, shape))
        except Exception as error:  # a forward may fail in any way
            tried.append(shape)
            first = first or error
    advice = _other_inputs(model) or 'give the shape that it takes as input_shape=(C, H, W)'
    raise NotProbed(f'{type(model).__name__} could not be probed for its convolutions with inputs of shape {tried}; '
                    f'{advice}. With the first of them: {type(first).__name__}: {first}') from first


def _other_inputs(model: nn.Module) -> str:
    """Advice for a forward that does not take one image; empty if it may."""
    forward = inspect.signature(model.forward)
    try:
        forward.bind(None)
    except TypeError:
        return (f'its forward takes {forward}, which no input_shape provides. Show it once what it takes, '
                '.probe_with(...), or leave that to DyRepHook, which does so with the first batch of the training '
                '(static and structure need it before: load_structure after probe_with)')
    return ''


def probe_with(model: nn.Module, args: Tuple, kwargs: Dict[str, Any]) -> Survey:
    """Survey a backbone with inputs of a real forward pass, two images of them where it takes so few."""
    few = _first((args, kwargs), 2, _batch_size((args, kwargs)))
    try:
        return examine(model, *few[0], **few[1])
    except Exception:  # of whatever a batch consists
        return examine(model, *args, **kwargs)


def example_of(args: Tuple, kwargs: Dict[str, Any]) -> Inputs:
    """The first image of inputs of a forward pass."""
    return _first((args, kwargs), 1, _batch_size((args, kwargs)))


def inputs_for(backbone: 'DyRepBackbone', shape: Sequence[int]) -> Inputs:
    """What a wrapped backbone can be run on: the example that it was shown, else one image of a shape (C, H, W)."""
    return backbone._dyrep.example or ((zeros(backbone, shape),), {})


def _batch_size(inputs: Any) -> Optional[int]:
    return next((len(tensor) for tensor in tensors_in(inputs) if tensor.dim() > 1), None)


def _first(value: Any, number: int, batch: Optional[int]) -> Any:
    if isinstance(value, torch.Tensor):
        return value[:number].detach() if value.dim() and len(value) == batch else value
    if isinstance(value, dict):
        return {key: _first(item, number, batch) for key, item in value.items()}
    return type(value)(_first(item, number, batch) for item in value) if type(value) in (list, tuple) else value
