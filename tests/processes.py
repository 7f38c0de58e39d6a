"""Runs in several processes through the launcher scripts, and a look into each of their ranks."""
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from mmdyrep.models.finding import unwrapped
from tests.resuming import dyrep_config
from tests.runs import ROOT


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def start(script: str, *arguments: Any, env: Dict[str, str] = {}) -> subprocess.Popen:
    """Start a launcher script of tools/; standard output and error come together."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    return subprocess.Popen(['bash', str(ROOT / 'tools' / script), *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, 'PATH': path, 'OMP_NUM_THREADS': '1', 'PORT': str(free_port()), **env})


def launch(script: str, *arguments: Any, env: Dict[str, str] = {}) -> subprocess.CompletedProcess:
    """Run a launcher script of tools/ to its end."""
    process = start(script, *arguments, env=env)
    try:
        output = process.communicate(timeout=240)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def dist_train(cfg: Config, work_dir: Path, *arguments: str, ranks: int = 2) -> subprocess.CompletedProcess:
    """Train with tools/dist_train.sh."""
    path = work_dir.parent / f'{work_dir.name}.py'
    cfg.dump(path)
    return launch('dist_train.sh', path, ranks, '--work-dir', work_dir, *arguments)


def ranks_config(folder: Optional[Path] = None, comm_hook: bool = False, by_epoch: bool = True,
                 **changes: Any) -> Config:
    """`dyrep_config` for two ranks: 2 epochs or 16 iterations of 16 images a rank; `WatchRanks` writes to a folder."""
    cfg = dyrep_config(by_epoch=by_epoch, batch=16, **changes)
    if by_epoch:
        cfg.train_cfg.max_epochs = 2
    else:
        cfg.train_cfg.max_iters = 16
    cfg.custom_imports.imports.append('tests.processes')
    if folder is not None:
        cfg.custom_hooks = [*cfg.get('custom_hooks', []),
                            dict(type='WatchRanks', folder=str(folder), comm_hook=comm_hook)]
    return cfg


def read_ranks(folder: Path, ranks: int = 2) -> List[Dict[str, Any]]:
    """What `WatchRanks` has written."""
    return [torch.load(folder / f'rank_{rank}.pth', weights_only=False) for rank in range(ranks)]


@HOOKS.register_module()
class WatchRanks(Hook):
    """Keeps what every rank holds at the end of each epoch (or its parameters after each iteration).

    Args:
        folder (str): For ``rank_N.pth``.
        comm_hook (bool): Register a communication hook that counts its calls.
    """

    priority = 'LOWEST'

    def __init__(self, folder: str, comm_hook: bool = False) -> None:
        self.folder = Path(folder)
        self.comm_hook = comm_hook
        self.calls = 0
        self.seen: Dict[str, List[Any]] = dict(epochs=[], iterations=[], images=[], calls=[], wrappers=[])
        self.wrappers: List[Any] = []

    def before_train(self, runner: Runner) -> None:
        if self.comm_hook:
            runner.model.register_comm_hook(self, count_calls)

    def _note_wrapper(self, runner: Runner) -> None:
        wrapper = runner.model
        if not self.wrappers or self.wrappers[-1]() is not wrapper:
            self.wrappers.append(weakref.ref(wrapper))
            self.seen['wrappers'].append(dict(
                type=type(wrapper).__name__, find_unused_parameters=wrapper.find_unused_parameters,
                broadcast_buffers=wrapper.broadcast_buffers, static_graph=wrapper.static_graph,
                parameters=sum(p.numel() for p in wrapper._module_parameters) - sum(
                    p.numel() for p in wrapper.module.parameters())))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._note_wrapper(runner)
        self.seen['images'].append(data_batch['inputs'].double().sum().item())
        self.seen['iterations'].append({
            name: parameter.detach().clone() for name, parameter in unwrapped(runner.model).named_parameters()})

    def after_train_epoch(self, runner: Runner) -> None:
        self._note_wrapper(runner)
        models = [unwrapped(runner.model), *(
            hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook))]
        self.seen['epochs'].append([{name: value.clone() for name, value in model.state_dict().items()}
                                    for model in models])
        self.seen['calls'].append(self.calls)

    def after_train(self, runner: Runner) -> None:
        alive = sum(wrapper() is not None for wrapper in self.wrappers)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save({**self.seen, 'alive': alive}, self.folder / f'rank_{runner.rank}.pth')


# annotated as DistributedDataParallel wants it
def count_calls(state: WatchRanks, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Communication hook: the mean over ranks, counted."""
    state.calls += 1
    return allreduce_hook(None, bucket)
