"""Runs that are killed and resumed, compared with straight ones."""
from pathlib import Path
from typing import Any, Dict, List

import torch
from mmengine.config import Config

from mmdyrep.fileio import read_json
from tests.runs import differences, small_config, train

SAVED = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'dyrep')
# in the middle of the third epoch, and between two checkpoints of an iteration loop
KILL_AT = 21


def dyrep_config(by_epoch: bool = True, ema: Any = None, hook: Dict[str, Any] = {}, **changes: Any) -> Config:
    """`small_config` with DyRep: an update an epoch, or every 7 iterations, between the checkpoints."""
    settings = dict(type='DyRepHook', by_epoch=by_epoch, interval=1 if by_epoch else 7, metric='snip_bn',
                    calibration_batches=2 if by_epoch else 4, dep=dict(threshold=1e-5))
    cfg = small_config(by_epoch=by_epoch, **changes)
    cfg.default_hooks.dyrep = {**settings, **hook}
    cfg.model.backbone = dict(type='DyRepBackbone', backbone=cfg.model.backbone)
    if ema is not None:
        cfg.custom_hooks = [dict(type='EMAHook', **ema), *cfg.get('custom_hooks', [])]
    return cfg


def without_seconds(value: Any) -> Any:
    """A history without the times that updates took."""
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != 'seconds'}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def run_files(work_dir: Path) -> Dict[str, Any]:
    """Content of a run's dyrep folder, but for times."""
    return {path.name: without_seconds(read_json(path)) for path in sorted((work_dir / 'dyrep').glob('*.json'))}


def killed_and_resumed(cfg: Config, folder: Path, kill_at: int = KILL_AT) -> List[str]:
    """Differences between the last checkpoints, and files, of a straight run and of one killed and resumed."""
    straight = train(cfg, folder / 'straight')
    assert straight.returncode == 0, straight.stdout[-3000:]
    dying = Config(cfg.to_dict())
    dying.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='KillHook', at=kill_at)]
    killed = train(dying, folder / 'resumed')
    assert killed.returncode == -9, killed.stdout[-3000:]
    resumed = train(cfg, folder / 'resumed', '--resume')
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    assert 'resumed epoch' in resumed.stdout
    last = 'epoch_4.pth' if cfg.train_cfg.by_epoch else 'iter_32.pth'
    assert len(list((folder / 'resumed').glob('20*'))) == 2
    left, right = (torch.load(folder / run / last, map_location='cpu', weights_only=False)
                   for run in ('straight', 'resumed'))
    assert set(left) == set(right)
    found = [line for key in SAVED if key in left
             for line in differences(without_seconds(left[key]) if key == 'dyrep' else left[key],
                                     without_seconds(right[key]) if key == 'dyrep' else right[key], key)]
    return found + differences(run_files(folder / 'straight'), run_files(folder / 'resumed'), 'files')
