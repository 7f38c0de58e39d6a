"""What the command-line tools share."""
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Dict, Iterator, Optional

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODEL_WRAPPERS
from torch.nn.parallel import DistributedDataParallel

# mmengine looks for configs by name with it; the sets of versions and setup.py hold setuptools back, as this asks for
warnings.filterwarnings('ignore', message='pkg_resources is deprecated')


def read_config(path: str, options: Optional[Dict[str, Any]] = None) -> Config:
    """Read a config file, with what ``--cfg-options`` overrides in it."""
    cfg = Config.fromfile(path)
    if options is not None:
        cfg.merge_from_dict(options)
    return cfg


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


def set_processes(cfg: Config) -> None:
    """On a machine without a GPU, start the process group over gloo and set a wrapper that needs none.

    mmengine's launchers would choose a GPU for each process. With one, or with launcher 'none', nothing is done.
    """
    if cfg.get('launcher', 'none') not in ('pytorch', 'slurm') or get_device() != 'cpu':
        return
    if cfg.launcher == 'slurm':
        _read_slurm()
    options = dict(cfg.get('env_cfg', {}).get('dist_cfg', {}))
    dist.init_process_group('gloo', timeout=timedelta(seconds=options.get('timeout', 1800)))
    wrapper = cfg.get('model_wrapper_cfg')
    if wrapper is None:
        # what mmengine sets where it chooses the wrapper, but for the device
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                                     find_unused_parameters=cfg.get('find_unused_parameters', False))
    elif issubclass(MODEL_WRAPPERS.get(wrapper.get('type', 'MMDistributedDataParallel')), DistributedDataParallel):
        wrapper.setdefault('device_ids', None)


def _read_slurm() -> None:
    """Set the variables of torch's process group from Slurm's, those that are set already excepted."""
    env = os.environ
    if 'MASTER_ADDR' not in env:
        hosts = subprocess.run(['scontrol', 'show', 'hostname', env['SLURM_NODELIST']], check=True, text=True,
                               stdout=subprocess.PIPE).stdout
        env['MASTER_ADDR'] = hosts.split()[0]
    env.setdefault('MASTER_PORT', '29500')
    env.update(RANK=env['SLURM_PROCID'], WORLD_SIZE=env['SLURM_NTASKS'], LOCAL_RANK=env.get('SLURM_LOCALID', '0'))


def leave_processes() -> None:
    """End a process whose group works over gloo; any other returns.

    The threads of gloo (torch 2.1) sometimes never end, and with them the interpreter.
    """
    if dist.is_initialized() and dist.get_backend() == 'gloo':
        dist.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextmanager
def fail_readably() -> Iterator[None]:
    """Show errors of use as one message; MMDYREP_TRACEBACK=1 shows where they came from."""
    try:
        yield
    except (ValueError, OSError, KeyError, TypeError) as error:
        if os.environ.get('MMDYREP_TRACEBACK'):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f'{type(error).__name__}: {message}\n(MMDYREP_TRACEBACK=1 shows the traceback)', file=sys.stderr)
        sys.exit(1)
