"""What the command-line tools share."""
import os
import sys
from contextlib import contextmanager
from typing import Iterator

import torch
from mmengine.config import Config


def set_loader_defaults(cfg: Config) -> None:
    """Set what mmpretrain's configs leave to its own tools: how samples are collated.

    Persistent workers stay off where a config is silent: their random state can't be restored by a resume.
    """
    for field in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(field)
        if loader is None or cfg.get('default_scope') != 'mmpretrain':
            continue
        loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.setdefault('pin_memory', torch.cuda.is_available())


@contextmanager
def fail_readably() -> Iterator[None]:
    """Show errors of use as one message; MMDYREP_TRACEBACK=1 shows where they came from."""
    try:
        yield
    except (ValueError, FileNotFoundError, KeyError, TypeError) as error:
        if os.environ.get('MMDYREP_TRACEBACK'):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f'{type(error).__name__}: {message}\n(MMDYREP_TRACEBACK=1 shows the traceback)', file=sys.stderr)
        sys.exit(1)
