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


def join_processes(cfg: Config) -> None:
    """Let processes that torchrun has started work together on a machine without a GPU.

    mmengine would ask for NCCL and give DDP the number of a GPU.
    """
    if cfg.get('launcher') != 'pytorch' or torch.cuda.is_available():
        return
    torch.distributed.init_process_group('gloo')
    # naming the wrapper drops mmengine's defaults
    defaults = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                    find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.model_wrapper_cfg = {**defaults, **(cfg.get('model_wrapper_cfg') or {})}


def leave_processes() -> None:
    """End a process that :func:`join_processes` joined to others; others return.

    The threads of gloo (torch 2.1) sometimes never end, and with them the interpreter.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == 'gloo':
        torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


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
