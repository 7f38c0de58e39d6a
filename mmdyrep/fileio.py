"""Files that are whole or not there, and checkpoints read with care."""
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Union

import torch

PathLike = Union[str, os.PathLike]


class NoStateDict(ValueError):
    """A file that can be read, but holds no state dict."""


@contextmanager
def atomic_path(path: PathLike, suffix: str = '.tmp') -> Iterator[Path]:
    """Path beside ``path`` to write to; it takes the place of ``path`` when the block ends without an error.

    A process killed at any moment leaves the old file or the new one. ``suffix`` is the temporary name's, for
    content that is read before it takes its place.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'.{path.name}.', suffix=suffix, dir=path.parent)
    temporary = Path(name)
    try:
        os.fchmod(handle, 0o666 & ~_umask())
        os.close(handle)
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: PathLike, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(value, indent=1, allow_nan=False) + '\n'
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def read_json(path: PathLike) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If it is not JSON, with its path.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not a JSON file: {error}') from error


def write_checkpoint(path: PathLike, checkpoint: Dict[str, Any]) -> None:
    """Write a checkpoint with torch.save, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(checkpoint, temporary)


def read_checkpoint(path: PathLike) -> Dict[str, Any]:
    """Read a checkpoint to the CPU, as a dict with ``state_dict``; a bare state dict gets one around it.

    Raises:
        ValueError: If the file is broken or no checkpoint (then a :class:`NoStateDict`), with its path.
        FileNotFoundError: If there is none.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint at {path}')
    try:
        checkpoint = _load(path)
    except Exception as error:
        raise ValueError(f'{path} can not be read as a checkpoint ({type(error).__name__}: {error}). '
                         'Was it written completely?') from error
    if not isinstance(checkpoint, dict):
        raise NoStateDict(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint')
    if 'state_dict' not in checkpoint:
        checkpoint = {'state_dict': checkpoint}
    state = checkpoint['state_dict']
    entries = state if isinstance(state, Mapping) else {}
    wrong = [key for key, value in entries.items() if not isinstance(value, torch.Tensor)]
    if not entries or wrong:
        raise NoStateDict(f'{path} holds no state dict' + (f': {wrong[0]!r} is no tensor' if wrong else ''))
    return checkpoint


def _load(path: PathLike) -> Any:
    safe_globals = getattr(torch.serialization, 'safe_globals', None)
    if safe_globals is None:
        # this version of torch can't be told which of mmengine's types are harmless
        return torch.load(path, map_location='cpu')
    with safe_globals(_harmless()):
        return torch.load(path, map_location='cpu', weights_only=True)


def _harmless() -> list:
    import numpy as np
    from mmengine.logging import HistoryBuffer
    core = getattr(np, '_core', None) or np.core
    kinds = [type(np.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64', 'bool')]
    return [HistoryBuffer, np.ndarray, np.dtype, core.multiarray._reconstruct, core.multiarray.scalar, *kinds]
