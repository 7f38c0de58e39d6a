"""Checkpoints of runs that died while saving: what is left, and which one a resume takes."""
import logging
import os
import random
import signal
from pathlib import Path
from typing import Any, List

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from mmdyrep.engine.checkpoints import make_checkpoints_atomic, resume_from_readable
from mmdyrep.fileio import read_checkpoint
from tests.runs import differences, needs_images, small_config, toy_runner, train


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Folder of a run with iter_2.pth, iter_4.pth and iter_6.pth."""
    toy_runner(tmp_path, f'{tmp_path.name}-saved', saving=dict(interval=2)).train()
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth', 'iter_6.pth']
    return tmp_path


def truncate(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def resuming(folder: Path, load_from: Any = None) -> Any:
    return toy_runner(folder, f'{folder.name}-resuming', resume=True, load_from=load_from and str(load_from))


def warnings_of(caplog: Any, runner: Any) -> List[str]:
    runner.logger.addHandler(caplog.handler)
    caplog.clear()
    resume_from_readable(runner)
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_any_truncation_is_noticed_and_the_one_before_is_taken(saved: Path, caplog: Any) -> None:
    whole = (saved / 'iter_6.pth').read_bytes()
    lengths = random.Random(0).sample(range(1, len(whole) - 1), 25)
    for length in [0, 1, *lengths, len(whole) - 1]:
        (saved / 'iter_6.pth').write_bytes(whole[:length])
        runner = resuming(saved)
        warning, = warnings_of(caplog, runner)
        assert str(saved / 'iter_6.pth') in warning and f'Going on from {saved / "iter_4.pth"} instead' in warning
        assert runner._load_from == str(saved / 'iter_4.pth')


def test_training_goes_on_from_the_one_taken(saved: Path) -> None:
    straight = read_checkpoint(saved / 'iter_6.pth')
    truncate(saved / 'iter_6.pth', 1000)
    runner = resuming(saved)
    runner.train()
    assert len(runner.model.seen) == 2
    assert differences(straight['state_dict'], read_checkpoint(saved / 'iter_6.pth')['state_dict']) == []


def test_a_good_last_checkpoint_is_left_to_mmengine_without_a_word(saved: Path, caplog: Any) -> None:
    (saved / 'last_checkpoint').write_text(str(saved / 'iter_2.pth'))
    runner = resuming(saved)
    assert warnings_of(caplog, runner) == []
    runner.train()
    assert len(runner.model.seen) == 4


@pytest.mark.parametrize('spoil', [
    lambda record: record.write_text(''), lambda record: record.unlink(),
    lambda record: record.write_text('/moved/away/iter_6.pth')], ids=['empty', 'missing', 'moved'])
def test_a_spoilt_last_checkpoint_is_replaced_by_the_newest_file(saved: Path, caplog: Any, spoil: Any) -> None:
    spoil(saved / 'last_checkpoint')
    runner = resuming(saved)
    warning, = warnings_of(caplog, runner)
    assert f'Going on from {saved / "iter_6.pth"} instead' in warning


def test_newest_is_by_time_and_names_of_the_same_moment_by_number(saved: Path, caplog: Any) -> None:
    truncate(saved / 'iter_6.pth', 10)
    (saved / 'iter_2.pth').rename(saved / 'iter_12.pth')
    for name in ('iter_12.pth', 'iter_4.pth'):
        os.utime(saved / name, (10, 10))
    runner = resuming(saved)
    warnings_of(caplog, runner)
    assert runner._load_from == str(saved / 'iter_12.pth')
    os.utime(saved / 'iter_4.pth', (11, 11))
    runner = resuming(saved)
    warnings_of(caplog, runner)
    assert runner._load_from == str(saved / 'iter_4.pth')


def test_files_without_optimizer_are_no_replacement(saved: Path, caplog: Any) -> None:
    best = read_checkpoint(saved / 'iter_4.pth')
    del best['optimizer']
    torch.save(best, saved / 'best_accuracy.pth')
    truncate(saved / 'iter_6.pth', 10)
    runner = resuming(saved)
    warning, = warnings_of(caplog, runner)
    assert runner._load_from == str(saved / 'iter_4.pth')
    assert 'best_accuracy.pth holds no optimizer' in warning


def test_none_left_is_an_error_that_names_the_cause(saved: Path) -> None:
    for name in ('iter_2.pth', 'iter_4.pth', 'iter_6.pth'):
        truncate(saved / name, 100)
    with pytest.raises(ValueError, match='(?s)iter_6.pth can not be read.*max_keep_ckpts=1.*iter_4.pth can not'):
        resuming(saved).train()


def test_a_folder_without_checkpoints_begins_anew(tmp_path: Path, caplog: Any) -> None:
    runner = resuming(tmp_path)
    assert warnings_of(caplog, runner) == []
    runner.train()
    assert len(runner.model.seen) == 6


def test_a_broken_file_that_was_asked_for_is_an_error_that_names_the_newest_good_one(saved: Path) -> None:
    truncate(saved / 'iter_4.pth', 100)
    with pytest.raises(ValueError, match=f'(?s)iter_4.pth can not be read.*resumed is {saved / "iter_6.pth"}'):
        resuming(saved, saved / 'iter_4.pth').train()
    with pytest.raises(ValueError, match=f'(?s)no checkpoint at .*iter_5.pth.*resumed is {saved / "iter_6.pth"}'):
        resuming(saved, saved / 'iter_5.pth').train()


def test_a_second_call_changes_nothing(saved: Path, caplog: Any) -> None:
    truncate(saved / 'iter_6.pth', 100)
    runner = resuming(saved)
    assert len(warnings_of(caplog, runner)) == 1 and warnings_of(caplog, runner) == []
    make_checkpoints_atomic(runner)
    save = runner.save_checkpoint
    hook, = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
    with_step = hook._save_checkpoint_with_step
    make_checkpoints_atomic(runner)
    assert runner.save_checkpoint is save and hook._save_checkpoint_with_step is with_step


@pytest.mark.parametrize('keep', [1, 2])
def test_the_oldest_is_deleted_after_the_new_one_is_written(tmp_path: Path, monkeypatch: Any, keep: int) -> None:
    present = []
    replace = os.replace

    def watched(source: Any, target: Any) -> None:
        replace(source, target)
        present.append(sorted(path.name for path in tmp_path.glob('*.pth')))

    monkeypatch.setattr(os, 'replace', watched)
    toy_runner(tmp_path, tmp_path.name, saving=dict(interval=2, max_keep_ckpts=keep)).train()
    steps = [f'iter_{step}.pth' for step in (2, 4, 6)]
    assert present == [steps[max(0, i - keep):i + 1] for i in range(3)]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == steps[-keep:]
    assert read_checkpoint(tmp_path / 'iter_6.pth')['message_hub']['runtime_info']['keep_ckpt_ids'] == [
        2, 4, 6][-keep:]


@needs_images
@pytest.mark.slow
def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(tmp_path: Path) -> None:
    cfg = small_config(default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)))
    dying = Config(cfg.to_dict())
    # 24 iterations: the end of the third epoch; a checkpoint has some 65,000 bytes
    dying.custom_hooks = [dict(type='KillHook', at=24, writing=40_000)]
    assert train(cfg, tmp_path / 'straight').returncode == 0
    folder = tmp_path / 'killed'
    killed = train(dying, folder)
    assert killed.returncode == -signal.SIGXFSZ, killed.stdout[-3000:]
    assert [path.name for path in folder.glob('*.pth')] == ['epoch_2.pth']
    leftover, = folder.glob('.epoch_3.pth.*.tmp')
    assert leftover.stat().st_size == 40_000
    resumed = train(cfg, folder, '--resume')
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    assert [path.name for path in folder.glob('*.pth')] == ['epoch_4.pth'] and not leftover.exists()
    left, right = (read_checkpoint(tmp_path / run / 'epoch_4.pth') for run in ('straight', 'killed'))
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert differences(left[key], right[key]) == []


@needs_images
@pytest.mark.slow
def test_without_these_functions_such_a_run_has_no_checkpoint_left(tmp_path: Path) -> None:
    cfg = small_config(default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)))
    dying = Config(cfg.to_dict())
    del dying.default_hooks['random_state']
    dying.custom_hooks = [dict(type='KillHook', at=24, writing=40_000)]
    assert train(dying, tmp_path / 'killed').returncode == -signal.SIGXFSZ
    assert [(path.name, path.stat().st_size) for path in (tmp_path / 'killed').glob('*.pth')] == [
        ('epoch_3.pth', 40_000)]
    resumed = train(cfg, tmp_path / 'killed', '--resume')
    assert resumed.returncode != 0
    assert 'max_keep_ckpts=1; keep 2 or more' in resumed.stdout
