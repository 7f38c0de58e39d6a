"""Files that are whole or not there, and checkpoints read with care."""
import errno
import io
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Union

import torch

from .harmless import UnsafeContent, load_harmless

PathLike = Union[str, os.PathLike]


# the disk, the user's share of it, or the size that a file may have
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoStateDict(ValueError):
    """A file that can be read, but holds no state dict."""


class UnsafeCheckpoint(ValueError):
    """A file that could run code when it is read, so it is not."""


@contextmanager
def atomic_path(path: PathLike, suffix: str = '.tmp') -> Iterator[Path]:
    """Path beside ``path`` to write to; it takes the place of ``path`` when the block ends without an error.

    A process killed at any moment leaves the old file or the new one. ``suffix`` is the temporary name's, for
    content that is read before it takes its place.

    Raises:
        OSError: If there is no room, with the path and what to do; the old file stays.
    """
    path = Path(path)
    try:
        with _atomic_path(path, suffix) as temporary:
            yield temporary
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        limit = ' or raise the limit (ulimit -f)' if error.errno == errno.EFBIG else ''
        raise OSError(error.errno, f'{os.strerror(error.errno)}; nothing was written, an older file is as it was. Make '
                                   f'room{limit} and start again, a training with --resume', str(path)) from error


@contextmanager
def _atomic_path(path: Path, suffix: str) -> Iterator[Path]:
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
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not a JSON file: {error}') from error


def write_checkpoint(path: PathLike, checkpoint: Dict[str, Any]) -> None:
    """Write a checkpoint with torch.save, whole or not at all."""
    # torch's own writer does not tell why it failed
    content = io.BytesIO()
    torch.save(checkpoint, content)
    with atomic_path(path) as temporary:
        # no copy, either; where an error holds on to a getbuffer(), Python 3.12.1 crashes when it collects garbage
        temporary.write_bytes(content.getvalue())


def read_checkpoint(path: PathLike, key: Optional[str] = None,
                    known: Sequence[str] = ('state_dict',)) -> Dict[str, Any]:
    """Read a checkpoint to the CPU, as a dict with ``state_dict``; a bare state dict gets one around it.

    Nothing in the file is run: it may hold tensors, plain Python and mmengine's few types.

    Args:
        path (str): The file.
        key (str, optional): Entry of the file that holds the state dict. Defaults to the first that it has of `known`,
            else the whole file.
        known (Sequence[str]): Usual names of that entry.

    Raises:
        ValueError: If the file is broken, holds anything else (an :class:`UnsafeCheckpoint`) or is no checkpoint
            (a :class:`NoStateDict`), with its path.
        FileNotFoundError: If there is none.
    """
    checkpoint = _read(path)
    if not isinstance(checkpoint, dict):
        raise NoStateDict(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint')
    if key is None:
        key = next((name for name in known if name in checkpoint), None)
    elif key not in checkpoint:
        raise NoStateDict(f'{path} has no entry {key!r}, it has {sorted(map(str, checkpoint))[:8]}')
    state = checkpoint if key is None else checkpoint[key]
    entries = state if isinstance(state, Mapping) else {}
    wrong = [key for key, value in entries.items() if not isinstance(value, torch.Tensor)]
    if not entries or wrong:
        raise NoStateDict(f'{path} holds no state dict' + (f': {wrong[0]!r} is no tensor' if wrong else ''))
    return {'state_dict': checkpoint} if key is None else {**checkpoint, 'state_dict': state}


def _read(path: PathLike) -> Any:
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint at {path}')
    try:
        return load_harmless(path)
    except UnsafeContent as error:
        raise UnsafeCheckpoint(
            f'{path} holds {error}, which could run code when it is read, so it is not read. If you trust the file, '
            'write what is needed of it anew: '
            "torch.save({'state_dict': torch.load(PATH, weights_only=False)['state_dict']}, OTHER)") from error
    except Exception as error:
        raise ValueError(f'{path} can not be read as a checkpoint ({type(error).__name__}: {error}). '
                         'Was it written completely?') from error
