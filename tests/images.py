"""Real images for tests: Fashion-MNIST from its idx files."""
import struct
from functools import lru_cache
from pathlib import Path
from typing import Tuple

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / 'data' / 'fashion-mnist'


def _read(name: str) -> np.ndarray:
    content = (FOLDER / name).read_bytes()
    dimensions = content[3]
    shape = struct.unpack(f'>{dimensions}I', content[4:4 + 4 * dimensions])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


@lru_cache(maxsize=None)
def _all() -> Tuple[np.ndarray, np.ndarray]:
    return _read('t10k-images-idx3-ubyte'), _read('t10k-labels-idx1-ubyte')


def fashion(number: int, start: int = 0, dtype: torch.dtype = torch.float32) -> Tuple[Tensor, Tensor]:
    """Test images of Fashion-MNIST, standardized, of shape (number, 1, 28, 28), and their classes.

    Skips the test where the files are not there; tools/quickstart.sh and tools/run_tests.sh put them there.
    """
    if not (FOLDER / 't10k-images-idx3-ubyte').is_file():
        pytest.skip(f'no Fashion-MNIST in {FOLDER.relative_to(FOLDER.parents[1])}')
    images, labels = (array[start:start + number] for array in _all())
    x = (torch.tensor(images, dtype=dtype)[:, None] / 255 - 0.286) / 0.353
    return x, torch.tensor(labels, dtype=torch.long)
