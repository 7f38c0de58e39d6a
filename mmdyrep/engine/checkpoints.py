"""Checkpoints that survive a run that dies while it saves, and a resume from the newest that can be read."""
import glob
import os
from functools import wraps
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmdyrep.fileio import UnsafeCheckpoint, atomic_path, read_checkpoint

# what Runner.resume reads, and what a run that goes on as before needs as well
NEEDED = ('meta', 'message_hub')
COMPLETE = (*NEEDED, 'optimizer')


def resume_from_readable(runner: Runner) -> None:
    """Let a runner that is to resume take the newest checkpoint that can be read; call it in ``before_run``.

    With ``--resume`` that is the one that ``last_checkpoint`` names, unless it is broken or gone: then the newest
    complete one beside it, with a warning that names both. A file that was asked for by its path is never replaced by
    another. Files that are not on this machine's disks are left to mmengine. The file is read once more than mmengine
    does, by the first process alone. A second call does nothing.

    Raises:
        ValueError: If no checkpoint can be read, or the one asked for can't; with the newest that can.
    """
    if not runner._resume or runner._has_loaded or getattr(runner, '_resume_checked', False):
        return
    answer: List[Optional[str]] = [None, None, None]
    if is_main_process():
        try:
            answer[:2] = _choose(runner)
        except ValueError as error:
            answer[2] = str(error)
    broadcast_object_list(answer)
    path, warning, refusal = answer
    if refusal is not None:
        raise ValueError(refusal)
    if path is not None:
        runner.logger.warning(warning)
        runner._load_from = path
    runner._resume_checked = True


def _choose(runner: Runner) -> Tuple[Optional[str], Optional[str]]:
    """Path to take instead of what mmengine would, with the warning; (None, None) where mmengine is right."""
    asked, record = runner._load_from, Path(runner.work_dir) / 'last_checkpoint'
    named = str(asked) if asked is not None else record.read_text().strip() if record.exists() else None
    if named and ('://' in named or os.path.isdir(named)):
        return None, None
    folders = _folders(runner, named, asked is not None)
    if named is None and not _others(folders, None):
        return None, None  # nothing was saved yet: mmengine begins anew, and says so
    if named is None:
        problem: Optional[str] = f'{record} is missing'
    elif not named:
        problem = f'{record} is empty'
    else:
        problem = _problem(Path(named), NEEDED)
    if problem is None:
        return None, None
    newest, broken = None, []
    for path in _others(folders, named):
        why = _problem(path, COMPLETE)
        if why is None:
            newest = str(path)
            break
        broken.append(f'\n  {why}')
    if asked is not None:
        raise ValueError(f'--resume: {problem}\n  ' + (
            f'The newest checkpoint there that can be resumed is {newest}' if newest else
            'No other checkpoint there can be resumed') + ''.join(broken))
    if newest is None:
        raise ValueError(
            f'--resume: {problem}\n  No other checkpoint in {" or ".join(map(str, folders))} can be resumed. '
            'A run that dies while it saves may leave none with max_keep_ckpts=1; keep 2 or more. To begin anew, '
            'train without --resume' + ''.join(broken))
    return newest, f'--resume: {problem}\n  Going on from {newest} instead' + ''.join(broken)


def _folders(runner: Runner, named: Optional[str], asked: bool) -> List[Path]:
    """Local folders to look in."""
    work_dir = Path(runner.work_dir)
    folders = [Path(named).absolute().parent] if named else []
    if not asked:
        folders.append(work_dir)
        folders += [Path(hook.out_dir) / work_dir.name for hook in runner.hooks
                    if isinstance(hook, CheckpointHook) and hook.out_dir and '://' not in str(hook.out_dir)]
    return list(dict.fromkeys(folders))


def _others(folders: List[Path], named: Optional[str]) -> List[Path]:
    """Checkpoints in the folders but for the one named, the newest first."""
    suffix = os.path.splitext(named)[1] if named else ''
    found = {path for folder in folders for path in folder.glob(f'*{glob.escape(suffix or ".pth")}') if path.is_file()}
    found.discard(Path(named).absolute() if named else None)
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, len(path.name), path.name), reverse=True)


def _problem(path: Path, keys: Tuple[str, ...]) -> Optional[str]:
    try:
        checkpoint = read_checkpoint(path)
    except UnsafeCheckpoint:
        return None  # types of the user's own: whether they are read is up to mmengine
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    missing = [key for key in keys if key not in checkpoint]
    return f'{path} holds no {" and no ".join(missing)}, which a resumed run needs' if missing else None


def make_checkpoints_atomic(runner: Runner) -> None:
    """Let a runner write its checkpoints whole or not at all, and delete the oldest after the new one is written.

    mmengine writes in place, and deletes first: a run that dies while it saves leaves a truncated file, with
    ``max_keep_ckpts=1`` nothing else. Files that are not on this machine's disks are written as before. There must be
    room for one checkpoint more than ``max_keep_ckpts``. ``last_checkpoint`` is still written in place, but after the
    checkpoint: ``resume_from_readable`` finds that one. A second call does nothing.
    """
    if isinstance(runner, Runner) and not hasattr(runner.save_checkpoint, 'wrapped_by_mmdyrep'):
        runner.save_checkpoint = _atomically(runner.save_checkpoint)
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and not hasattr(hook._save_checkpoint_with_step, 'wrapped_by_mmdyrep'):
            hook._save_checkpoint_with_step = _deleting_last(hook)


def _atomically(save: Callable) -> Callable:
    """``Runner.save_checkpoint`` by way of a temporary name."""

    @wraps(save)
    def wrapper(out_dir: str, filename: str, file_client_args: Optional[dict] = None, *args: Any,
                **kwargs: Any) -> None:
        local = file_client_args is None and isinstance(
            get_file_backend(str(out_dir), backend_args=kwargs.get('backend_args')), LocalBackend)
        if not local or not is_main_process():
            save(out_dir, filename, file_client_args, *args, **kwargs)
            return
        path = Path(out_dir) / filename
        for leftover in path.parent.glob(f'.{glob.escape(path.name)}.*.tmp'):
            leftover.unlink()
        with atomic_path(path) as temporary:
            save(out_dir, os.path.relpath(temporary, out_dir), file_client_args, *args, **kwargs)

    wrapper.wrapped_by_mmdyrep = True  # type: ignore[attr-defined]
    return wrapper


def _deleting_last(hook: CheckpointHook) -> Callable:
    """``CheckpointHook._save_checkpoint_with_step`` that frees the place of the new checkpoint afterwards."""
    save = hook._save_checkpoint_with_step

    @wraps(save)
    def wrapper(runner: Runner, step: int, meta: dict) -> None:
        oldest = None
        if hook.max_keep_ckpts > 0:
            kept = hook.keep_ckpt_ids
            if len(kept) == hook.max_keep_ckpts and kept[-1] != step:
                # one less is kept, so mmengine deletes none
                oldest = kept.popleft()
        save(runner, step, meta)
        if oldest is not None and is_main_process():
            path = hook.file_backend.join_path(hook.out_dir, hook.filename_tmpl.format(oldest))
            if hook.file_backend.isfile(path):
                hook.file_backend.remove(path)

    wrapper.wrapped_by_mmdyrep = True  # type: ignore[attr-defined]
    return wrapper
