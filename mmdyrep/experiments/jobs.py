"""A run with its seed: where its files are, which commands make them, how far it is."""
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from mmengine.config import Config

from .experiment import Run

RESULT, BACKBONE = 'result.json', 'backbone.pth'
_STRUCTURE = re.compile(r'\{structure:(\d+)\}')


@dataclass(frozen=True)
class Job:
    """A run with its seed, and its folder."""

    run: Run
    seed: int
    folder: Path
    options: Mapping[str, Any]
    before: Optional['Job'] = None

    @property
    def name(self) -> str:
        """For a person."""
        return f'{self.run.row}, {self.run.column}, seed {self.seed}'

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return (self.folder / RESULT).exists()

    @property
    def source(self) -> 'Job':
        """What it starts from.

        Raises:
            ValueError: If it starts from no other.
        """
        if self.before is None:
            raise ValueError(f'{self.name} starts from no other run: no option of it can name one, '
                             'as {checkpoint}, {backbone} or {structure:N}')
        return self.before


def jobs_of(runs: Sequence[Run], seeds: int, folder: Path, options: Mapping[str, Any], first: int = 1) -> List[Job]:
    """A job for each run and seed, so many from the first, all runs of a seed before the next.

    The folder is named after the config and what is changed in it, so that experiments share what they have in common.
    """
    return [_job(run, seed, folder, options) for seed in range(first, first + seeds) for run in runs]


def _job(run: Run, seed: int, folder: Path, options: Mapping[str, Any]) -> Job:
    before = _job(run.before, seed, folder, options) if run.before is not None else None
    return Job(run, seed, folder / _name(run, options) / f'seed_{seed}',
               {**run.options, 'randomness.seed': seed, **options}, before)


def _name(run: Run, options: Mapping[str, Any]) -> str:
    changed = json.dumps({**run.options, **options}, sort_keys=True, default=str)
    if run.before is not None:
        changed += _name(run.before, options)
    return f'{Path(run.config).parent.name}-{Path(run.config).stem}-{hashlib.sha1(changed.encode()).hexdigest()[:8]}'


def in_order(jobs: Sequence[Job]) -> List[Job]:
    """Each folder once, after what it starts from, whether that is among the jobs or not."""
    found: Dict[Path, Job] = {}
    for job in jobs:
        for each in ([job.before] if job.before is not None else []) + [job]:
            found.setdefault(each.folder, each)
    return list(found.values())


def slug(text: str) -> str:
    """Name of a folder: lower case, digits, letters, dots and dashes."""
    return re.sub(r'[^a-z0-9.]+', '-', text.lower().replace('w/o', 'without').replace('w/', 'with')).strip('-')


def config_of(job: Job, root: Path) -> Config:
    """Config of a job, with what is changed in it."""
    cfg = Config.fromfile(root / 'configs' / job.run.config)
    cfg.merge_from_dict({key: value for key, value in job.options.items()
                         if not (isinstance(value, str) and '{' in value)})
    return cfg


def commands(job: Job, root: Path) -> List[Tuple[str, List[str]]]:
    """Scripts of tools/ with their arguments: fusing the backbone to start from, where one is needed, then training."""
    steps = []
    if '{backbone}' in map(str, job.options.values()):
        source = job.source
        steps.append(('deploy_fuse.py', [str(root / 'configs' / source.run.config), str(last_checkpoint(source, root)),
                                         str(source.folder / BACKBONE), '--backbone-only',
                                         *_settings(source, root, source.options)]))
    steps.append(('train.py', [str(root / 'configs' / job.run.config), '--work-dir', str(job.folder), '--resume',
                               *_settings(job, root, job.options)]))
    return steps


def _settings(job: Job, root: Path, options: Mapping[str, Any]) -> List[str]:
    return ['--cfg-options', *(f'{key}={_written(_filled(value, job, root))}' for key, value in options.items())]


def _filled(value: Any, job: Job, root: Path) -> Any:
    if not isinstance(value, str) or '{' not in value:
        return value
    source, structure = job.source, _STRUCTURE.fullmatch(value)
    if structure:
        return str(source.folder / 'dyrep' / f'structure_{last_update(source, root, int(structure[1]))}.json')
    known = {'{checkpoint}': last_checkpoint(source, root), '{backbone}': source.folder / BACKBONE}
    if value not in known:
        raise ValueError(f'{job.name}: {value!r} is none of {", ".join(known)} and {{structure:N}}')
    return str(known[value])


def _written(value: Any) -> str:
    return value if isinstance(value, str) else str(value).replace(' ', '')


def last_checkpoint(job: Job, root: Path) -> Path:
    """The checkpoint that a job of epochs ends with."""
    return job.folder / f'epoch_{config_of(job, root).train_cfg.max_epochs}.pth'


def last_update(job: Job, root: Path, epoch: int) -> int:
    """Last epoch up to the given one that DyRep updates at: begin < e <= end, (e - begin) % interval == 0.

    Raises:
        ValueError: If there is none.
    """
    hook = config_of(job, root).default_hooks.dyrep
    begin, end = hook.get('begin', 0), hook.get('end') or epoch
    last = begin + (min(epoch, end) - begin) // hook.interval * hook.interval
    if last <= begin:
        raise ValueError(f'{job.name} has no update up to epoch {epoch}, it updates every {hook.interval}')
    return last


def share_done(job: Job, length: int) -> float:
    """How much of its epochs or iterations a job has trained, 0 to 1."""
    if job.done:
        return 1.0
    found = 0
    for path in job.folder.glob('*/vis_data/scalars.json'):
        for line in path.read_text(errors='replace').splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # being written
            # rows of training count iterations, in an epoch loop epochs too; those of validation count either;
            # an update's own count iterations in any case
            if 'iter' in row or not any(key.startswith('dyrep/') for key in row):
                found = max(found, row['epoch'] - 1 if 'epoch' in row else row.get('step', 0))
    return min(found / length, 1.0)
