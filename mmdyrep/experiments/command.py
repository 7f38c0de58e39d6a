"""What tools/run_experiment.py does."""
import os
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmdyrep.analysis.learning import read_learning
from mmdyrep.fileio import read_json, write_json

from .counts import count
from .earlier import take_over, told_of
from .experiment import NAMES, Experiment, Study
from .jobs import RESULT, Job, commands, config_of, in_order, jobs_of, last_checkpoint, share_done, slug
from .report import write_report
from .results import read_result
from .running import Runner
from .studies import find


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
    gpus: Optional[int] = None
    slurm: Optional[str] = None
    options: Optional[Mapping[str, Any]] = None
    rows: Optional[Sequence[str]] = None
    earlier: Optional[Path] = None

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
        counted = find(self.name).picture == 'counts'
        parts = ['python', 'tools/run_experiment.py', self.name, *(['--small'] if self.small else []),
                 *([] if counted else ['--seeds', str(self.seeds), '--resume'])]
        return ' '.join(parts)


def perform(request: Request) -> bool:
    """Train, or print what is to be trained, then report.

    Returns:
        bool: Whether a run has failed.

    Raises:
        ValueError: If there is no such experiment or row, or there are runs and ``resume`` is not given.
    """
    experiment, console = find(request.name), Console()
    for key, value in (('seeds', request.seeds), ('jobs', request.jobs), ('gpus', request.gpus)):
        if value is not None and value < 1:
            raise ValueError(f'--{key} must be at least 1, got {value}')
    if isinstance(experiment, Study) and not request.small:
        raise ValueError(f'{request.name} is a study of this package, at small size alone; give --small')
    runs = experiment.small if request.small else experiment.full
    if experiment.picture == 'counts':
        paths = write_report(request.folder, request.name, experiment, count(runs, request.root), {}, [],
                             request.line(), {})
        console.print(f'{len(runs)} networks counted; report: {paths[0]}')
        return False
    jobs = jobs_of(runs, request.seeds, request.runs, request.options or {}, experiment.first_seed)
    if request.small and request.folder.exists() and not (request.resume or request.report_only):
        raise ValueError(f'{request.folder} is there from an earlier call; give --resume to go on with it, '
                         '--report-only to report what is done, or another --work-dir')
    wanted = _of_rows(request, jobs)
    errors: Dict[str, str] = {}
    if request.earlier is not None:
        console.print(f'{len(take_over(request.earlier, jobs))} runs taken over from {request.earlier}')
    if request.small and not request.report_only:
        _check_data(request, wanted)
        request.folder.mkdir(parents=True, exist_ok=True)
        errors = _train(request, in_order(wanted), console)
    elif not request.small:
        _collect(request, in_order(jobs), errors)
        if not request.report_only:
            _print_commands(request, [job for job in in_order(wanted) if not job.done])
    _report(request, experiment, jobs, errors, console)
    return bool(errors)


def _of_rows(request: Request, jobs: List[Job]) -> List[Job]:
    names = list(dict.fromkeys(job.run.row for job in jobs))
    unknown = [row for row in request.rows or [] if row not in names]
    if unknown:
        raise ValueError(f'{request.name} has no row {", ".join(map(repr, unknown))}; it has '
                         f'{", ".join(map(repr, names))}')
    return jobs if request.rows is None else [job for job in jobs if job.run.row in request.rows]


def _report(request: Request, experiment: Experiment, jobs: List[Job], errors: Mapping[str, str],
            console: Console) -> None:
    results = [told_of(job) for job in jobs if job.done]
    if not (results or errors or request.report_only):
        return
    checkpoint = next((last_checkpoint(job, request.root) for job in jobs if job.done), None)
    paths = write_report(request.folder, request.name, experiment, results, errors,
                         [job.name for job in jobs if not job.done and job.name not in errors], request.line(),
                         request.options or {}, checkpoint if experiment.picture == 'stem' else None)
    console.print(f'{len(results)} of {len(jobs)} runs are done; report: {paths[0]}')


def _check_data(request: Request, jobs: List[Job]) -> None:
    scenes = Path(os.environ.get('FASHION_SCENES', request.root / 'data' / 'fashion-scenes'))
    if any('fashion-scenes' in job.run.config for job in jobs) and not scenes.is_dir():
        raise ValueError(f'{request.name} needs the scenes in {scenes}; make them, in 20 seconds, by '
                         '`python tools/dataset_converters/fashion_scenes.py`')


def _train(request: Request, jobs: List[Job], console: Console) -> Dict[str, str]:
    lengths = {job.folder: _length(request, job) for job in jobs}
    # in percent of a run
    progress = Progress(TextColumn('{task.description}'), BarColumn(), TextColumn('{task.fields[runs]}'),
                        TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn(elapsed_when_finished=True),
                        console=console)

    def told(job: Job, error: str) -> None:
        progress.console.print(f'{job.name}: {"FAILED, " + error if error else _said(job)}', markup=False)

    with progress:
        task = progress.add_task(request.name, total=float(len(jobs)), runs='')

        def count_done() -> None:
            shares = [share_done(job, lengths[job.folder]) for job in jobs]
            progress.update(task, completed=sum(shares), runs=f'{sum(job.done for job in jobs)} of {len(jobs)} runs')

        # what is done already is no measure of the speed
        count_done()
        progress.reset(task, runs=progress.tasks[0].fields['runs'],
                       completed=progress.tasks[0].completed)  # type: ignore[arg-type]  # rich counts in floats
        errors = Runner(request.root, request.jobs, _finish, told).run(jobs, count_done)
        count_done()
    return errors


def _finish(job: Job) -> Dict[str, Any]:
    result = read_result(job.folder, job.run.metric)
    if job.run.learning:
        result['learned'] = [asdict(item) for item in read_learning(job.folder)]
    return result


def _said(job: Job) -> str:
    result = read_json(job.folder / RESULT)
    return f'{NAMES[result["metric"]]} {result["value"]:.2f} %'


def _length(request: Request, job: Job) -> int:
    loop = config_of(job, request.root).train_cfg
    return loop.get('max_epochs') or loop.max_iters


def _collect(request: Request, jobs: List[Job], errors: Dict[str, str]) -> None:
    """Results of runs that a cluster has trained to their end."""
    for job in jobs:
        if job.done or not job.folder.exists():
            continue
        try:
            result = _finish(job)
            if result['steps'] >= _length(request, job):
                write_json(job.folder / RESULT, {**result, 'seconds': _wall(job.folder)})
        except (ValueError, OSError) as error:
            errors[job.name] = str(error)


def _wall(folder: Path) -> float:
    """Seconds between the first and the last file of a run's log."""
    times = [path.stat().st_mtime for path in folder.glob('*/*.log')] + [
        path.stat().st_mtime for path in folder.glob('*/vis_data/config.py')]
    return round(max(times) - min(times), 1) if times else 0.0


def _print_commands(request: Request, jobs: List[Job]) -> None:
    # a backbone that several start from is fused once
    print('\n'.join(dict.fromkeys(line for job in jobs for line in _lines(request, job))))


def _lines(request: Request, job: Job) -> List[str]:
    gpus = request.gpus or _gpus(job.run.config)
    lines = []
    for script, (config, *rest) in commands(job, request.root):
        if script != 'train.py':
            lines.append(shlex.join(['python', f'tools/{script}', config, *rest]))
        elif request.slurm:
            name = slug(f'{request.name} {job.run.row} {job.seed}')
            # the work dir is an argument of its own
            parts = ['bash', 'tools/slurm_train.sh', request.slurm, name, config, rest[1], *rest[2:]]
            lines.append(f'GPUS={gpus} {shlex.join(parts)}')
        else:
            lines.append(shlex.join(['bash', 'tools/dist_train.sh', config, str(gpus), *rest]))
    return lines


def _gpus(config: str) -> int:
    """Of a recipe, as the name of its config says: 4xb2, 1xb128; else 8."""
    found = re.search(r'[_-](\d+)xb\d+', config)
    return int(found[1]) if found else 8
