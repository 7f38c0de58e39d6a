"""Automatic mixed precision, asked about as each version of PyTorch wants it."""
from contextlib import nullcontext
from typing import ContextManager, Optional

import torch

# since 2.4 the device is an argument, and the older functions warn at every call
_BY_DEVICE = torch.__version__ >= (2, 4)  # type: ignore[operator]


def _enabled(device: str) -> bool:
    if _BY_DEVICE:
        return torch.is_autocast_enabled(device)  # type: ignore[call-arg]
    return torch.is_autocast_cpu_enabled() if device == 'cpu' else torch.is_autocast_enabled()


def without_autocast() -> ContextManager[None]:
    """Operations run in the precision of their arguments."""
    for device in ('cuda', 'cpu'):
        if _enabled(device):
            return torch.autocast(device, enabled=False)
    return nullcontext()


def autocast_dtype(device: torch.device) -> Optional[torch.dtype]:
    """Precision that autocast gives to convolutions on a device; None where it is off."""
    if device.type not in ('cuda', 'cpu') or not _enabled(device.type):
        return None
    if _BY_DEVICE:
        dtype: torch.dtype = torch.get_autocast_dtype(device.type)
    else:
        dtype = torch.get_autocast_cpu_dtype() if device.type == 'cpu' else torch.get_autocast_gpu_dtype()
    return dtype
