"""Runs that an earlier report already tells of: another machine, or a work folder that is gone."""
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from mmdyrep.fileio import PathLike, read_json, write_json

from .jobs import RESULT, Job

# what a report adds to a run's own result
ADDED = ('row', 'column', 'seed', 'run')


def told_of(job: Job) -> Dict[str, Any]:
    """What a report tells of a run that is done: its result, whose it is, and the name that its settings have."""
    return {'row': job.run.row, 'column': job.run.column, 'seed': job.seed, 'run': job.folder.parent.name,
            **read_json(job.folder / RESULT)}


def take_over(path: PathLike, jobs: Sequence[Job]) -> List[Job]:
    """Let runs of a report count as done here; those that are done here, or have other settings, are left as they are.

    Settings are the config's name and what the experiment changes in it: whether that config or the code have changed
    since is not compared.

    Args:
        path (str): The JSON of a report.
        jobs (Sequence[Job]): All of the experiment.

    Returns:
        list[Job]: Those that were taken over.

    Raises:
        ValueError: If it is no report, or one of before runs were named in them.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get('runs'), list):
        raise ValueError(f'{path} is no report of an experiment: it has no list of runs')
    earlier: Dict[Tuple[str, int], Dict[str, Any]] = {}
    for run in content['runs']:
        if 'run' not in run:
            raise ValueError(f'{path} does not tell the settings of its runs (no "run" in them), so none can be taken')
        earlier[run['run'], run['seed']] = {key: value for key, value in run.items() if key not in ADDED}
    missing = [job for job in jobs if not job.done and _key(job) not in earlier]
    # a report has no checkpoints: what others start from is trained
    started_from = {job.before.folder for job in missing if job.before is not None}
    taken = []
    for job in jobs:
        found = earlier.get(_key(job))
        if found is None or job.done or job.folder in started_from:
            continue
        Path(job.folder).mkdir(parents=True, exist_ok=True)
        write_json(job.folder / RESULT, found)
        taken.append(job)
    return taken


def _key(job: Job) -> Tuple[str, int]:
    return job.folder.parent.name, job.seed
