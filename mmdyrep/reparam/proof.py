"""Eligibility proven: each op that the rules allow is tried on a copy of the network before it is offered.

Rules find what should work. Whether it does depends on code that no rule sees: activations inside a norm, weights
read elsewhere, modules kept in a list, compiled functions. So all ops are expanded at once on a copy in float64,
with norms that are not trivial and an input that is not zero, and outputs are compared: expanded, fused, and loaded
into the plain network. Ops that are seen to differ go, and the rest is tried again.
"""
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from .eligible import Survey, is_lazy, survey
from .lookalike import lookalike
from .probe import Flow, probe
from .random_state import random_state_kept
from .trial import TOLERANCES, Behind, Reasons, Trial, generator_of_trials, in_words, shake


def examine(model: nn.Module, *args: Any, **kwargs: Any) -> Survey:
    """Ops of a network that can be expanded, by the rules and by trial.

    Args:
        model (nn.Module): Network without blocks; left as it is, hooks and random state included.
        *args: Inputs of a forward pass, as an image of shape (N, C, H, W); random numbers take the place of zeros.
        **kwargs: Inputs by keyword.

    Returns:
        Survey: Ops in the order of the network.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        # what can be expanded is not a matter of the values
        model, args, kwargs = _materialized(model), _inputs(args), _inputs(kwargs)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if not is_lazy(buffer)]
    try:
        with random_state_kept():
            flow = _probe(model, args, kwargs)
            found = survey(model, flow)
            reasons = _try(lookalike(model, flow.needs_hooks), found.ops, args, kwargs) if found.ops else {}
    finally:
        for buffer, value in buffers:
            # functions that reach the network through globals have run it, not the copy
            if not torch.equal(buffer, value):
                buffer.data.copy_(value)
    ops = {name: behind for name, behind in found.ops.items() if name not in reasons}
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    merged = sorted({**found.reasons, **reasons}.items(), key=lambda item: order[item[0]])
    return Survey(ops, dict(merged))


def _probe(model: nn.Module, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Flow:
    """In the network's own precision, or in float32 where the device can't do that."""
    try:
        return probe(model, *args, **kwargs)
    except Exception:
        if not any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in model.parameters()):
            raise
        single = lookalike(model, keep_hooks=True).float()
        return probe(single, *_inputs(args, torch.float32), **_inputs(kwargs, torch.float32))


def _try(model: nn.Module, ops: Behind, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Reasons:
    """Why some of the ops are none, out of trials in the highest precision that the network works in."""
    first = None
    for dtype in TOLERANCES:
        for shaken in (True, False):
            try:
                trial = Trial(model, ops, _inputs(args, dtype), _inputs(kwargs, dtype), dtype, shaken)
            except Exception as error:  # a forward may fail in any way
                first = first or error
            else:
                return trial.failures()
    return dict.fromkeys(ops, f'could not be tried on a copy of the network: {in_words(first)}')


@torch.no_grad()
def _materialized(model: nn.Module) -> nn.Module:
    """Copy of a network without values (on the device `meta`) on the CPU, with random ones."""
    model = lookalike(model, keep_hooks=True).to_empty(device='cpu')
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                tensor.zero_()
                if tensor.is_floating_point():
                    tensor.uniform_(-0.2, 0.2)
    return shake(model)


def _inputs(value: Any, dtype: Optional[torch.dtype] = None) -> Any:
    """The same nest of inputs in a precision; random numbers for tensors of zeros, in which nothing shows."""
    if isinstance(value, Tensor) and value.is_meta:
        value = torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, Tensor) and value.is_floating_point():
        value = value.detach().to(dtype)
        return value if value.any() else torch.randn(value.shape, generator=generator_of_trials()).to(value)
    if isinstance(value, dict):
        return {key: _inputs(item, dtype) for key, item in value.items()}
    return type(value)(_inputs(item, dtype) for item in value) if type(value) in (list, tuple) else value
