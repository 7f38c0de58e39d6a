"""What tools/run_experiment.py does."""
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmdyrep.fileio import read_json, write_json

from .index import EXPERIMENTS
from .report import write_report
from .results import read_result
from .running import RESULT, Job, Runner, command, epochs_done, jobs_of, slug


@dataclass(frozen=True)
class Request:
    """What is asked for: the arguments of the tool."""

    root: Path
    name: str
    small: bool = False
    seeds: int = 1
    jobs: int = 1
    resume: bool = False
    report_only: bool = False
    work_dir: Path = Path('work_dirs/experiments')
    gpus: int = 8
    slurm: Optional[str] = None
    options: Optional[Mapping[str, Any]] = None

    @property
    def folder(self) -> Path:
        """Of the report."""
        return self.runs.parent / self.name

    @property
    def runs(self) -> Path:
        """Of the runs, those of all experiments."""
        return Path(self.work_dir).resolve() / ('small' if self.small else 'full') / 'runs'

    def line(self) -> str:
        """The command that makes the report again."""
        parts = ['python', 'tools/run_experiment.py', self.name, *(['--small'] if self.small else []),
                 '--seeds', str(self.seeds), '--resume']
        return ' '.join(parts)


def perform(request: Request) -> bool:
    """Train, or print what is to be trained, then report.

    Returns:
        bool: Whether a run has failed.

    Raises:
        ValueError: If there is no such experiment, or there are runs and ``resume`` is not given.
    """
    if request.name not in EXPERIMENTS:
        raise ValueError(f'there is no experiment {request.name!r}; there are {", ".join(EXPERIMENTS)}')
    for key, value in (('seeds', request.seeds), ('jobs', request.jobs), ('gpus', request.gpus)):
        if value < 1:
            raise ValueError(f'--{key} must be at least 1, got {value}')
    experiment, console = EXPERIMENTS[request.name], Console()
    runs = experiment.small if request.small else experiment.full
    jobs = jobs_of(runs, request.seeds, request.runs, request.options or {})
    if request.small and request.folder.exists() and not (request.resume or request.report_only):
        raise ValueError(f'{request.folder} is there from an earlier call; give --resume to go on with them, '
                         '--report-only to report them, or another --work-dir')
    errors: Dict[str, str] = {}
    if request.small and not request.report_only:
        request.folder.mkdir(parents=True, exist_ok=True)
        errors = _train(request, jobs, console)
    elif not request.small:
        _collect(jobs, errors)
        if not request.report_only:
            _print_commands(request, [job for job in jobs if not job.done])
    results = [{'row': job.run.row, 'column': job.run.column, 'seed': job.seed, **read_json(job.folder / RESULT)}
               for job in jobs if job.done]
    if results or errors or request.report_only:
        paths = write_report(request.folder, request.name, experiment, results, errors,
                             [job.name for job in jobs if not job.done and job.name not in errors], request.line(),
                             request.options or {})
        console.print(f'{len(results)} of {len(jobs)} runs are done; report: {paths[0]}')
    return bool(errors)


def _train(request: Request, jobs: List[Job], console: Console) -> Dict[str, str]:
    lengths = {job.folder: _epochs(request, job) for job in jobs}
    progress = Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('epochs'),
                        TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn(elapsed_when_finished=True),
                        console=console)

    def told(job: Job, error: str) -> None:
        progress.console.print(f'{job.name}: {"FAILED, " + error if error else _said(job)}', markup=False)

    with progress:
        task = progress.add_task(request.name, total=sum(lengths.values()))

        def count() -> None:
            done = sum(lengths[job.folder] if job.done else min(epochs_done(job), lengths[job.folder]) for job in jobs)
            progress.update(task, completed=done)

        # what is done already is no measure of the speed
        count()
        progress.reset(task, completed=progress.tasks[0].completed)
        errors = Runner(request.root, request.jobs, lambda job: read_result(job.folder), told).run(jobs, count)
        count()
    return errors


def _said(job: Job) -> str:
    return f'{read_json(job.folder / RESULT)["top1"]:.2f} %'


def _epochs(request: Request, job: Job) -> int:
    cfg = Config.fromfile(request.root / 'configs' / job.run.config)
    cfg.merge_from_dict(dict(job.options))
    return cfg.train_cfg.max_epochs


def _collect(jobs: List[Job], errors: Dict[str, str]) -> None:
    """Results of runs that a cluster has trained to their end."""
    for job in jobs:
        if job.done or not job.folder.exists():
            continue
        try:
            result = read_result(job.folder)
            configs = sorted(job.folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
            if configs and result['epochs'] >= Config.fromfile(configs[-1]).train_cfg.max_epochs:
                write_json(job.folder / RESULT, {**result, 'seconds': _wall(job.folder)})
        except (ValueError, OSError) as error:
            errors[job.name] = str(error)


def _wall(folder: Path) -> float:
    """Seconds between the first and the last file of a run's log."""
    times = [path.stat().st_mtime for path in folder.glob('*/*.log')] + [
        path.stat().st_mtime for path in folder.glob('*/vis_data/config.py')]
    return round(max(times) - min(times), 1) if times else 0.0


def _print_commands(request: Request, jobs: List[Job]) -> None:
    for job in jobs:
        config, *rest = command(job, request.root)
        if request.slurm:
            name = slug(f'{request.name} {job.run.row} {job.seed}')
            # the work dir is an argument of its own
            parts = ['bash', 'tools/slurm_train.sh', request.slurm, name, config, rest[1], *rest[2:]]
            print(f'GPUS={request.gpus} {shlex.join(parts)}')
        else:
            print(shlex.join(['bash', 'tools/dist_train.sh', config, str(request.gpus), *rest]))
