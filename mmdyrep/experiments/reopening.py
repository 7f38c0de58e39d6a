"""Runs that were killed after their last epoch was saved and before it was validated."""
import re
from pathlib import Path

from mmdyrep.analysis.run_files import read_run

from .jobs import Job, last_checkpoint

RECORD = 'last_checkpoint'


def reopen(job: Job, root: Path) -> None:
    """Let a run that has trained to its end, but was not validated there, do its last epoch again.

    Such a run would be resumed at its end, where nothing is left to do, the validation neither. Its last checkpoint
    goes, the one before is what it goes on from; the same epoch comes out. Iteration loops are left alone.

    Args:
        job (Job): That is about to go on.
        root (Path): The repository.
    """
    record = job.folder / RECORD
    if not record.exists() or not re.fullmatch(r'epoch_\d+\.pth', Path(record.read_text().strip()).name):
        return
    last = last_checkpoint(job, root)
    if Path(record.read_text().strip()).name != last.name or _validated(job.folder, int(last.stem.split('_')[1])):
        return
    last.unlink(missing_ok=True)
    earlier = sorted(job.folder.glob('epoch_*.pth'), key=lambda path: int(path.stem.split('_')[1]))
    if earlier:
        record.write_text(str(earlier[-1]))
    else:
        record.unlink()


def _validated(folder: Path, epoch: int) -> bool:
    try:
        metrics = read_run(folder).metrics
    except ValueError:
        return False
    return any(step == epoch for points in metrics.values() for step, _ in points)
