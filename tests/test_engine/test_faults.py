"""What goes wrong around a training: no room, no memory, files spoilt. Nothing is lost, and it is said what to do."""
import os
import pickle
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdyrep.engine.memory import ran_out_of_memory
from mmdyrep.fileio import read_checkpoint, read_json, write_checkpoint
from tests.forking import Forker
from tests.random_kills import check_whole, half_written, unequal
from tests.resuming import dyrep_config, run_files
from tests.runs import differences, needs_images
from tests.steps import Call, dyrep_hook, runner_of

pytestmark = needs_images
EMA = dict(momentum=0.1)


class Bomb:
    """Makes a folder if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path), )


@pytest.fixture(scope='module')
def forker() -> Iterator[Forker]:
    with Forker() as forker:
        yield forker


@pytest.fixture(scope='module')
def straight(forker: Forker, tmp_path_factory: Any) -> Path:
    """A run of 4 epochs that nothing happens to."""
    folder = tmp_path_factory.mktemp('straight') / 'run'
    done = forker.train(dyrep_config(ema=EMA), folder)
    assert done.code == 0, done.output[-3000:]
    return folder


# ---------------------------------------------------------------------- no room on the disk

@pytest.mark.slow
@pytest.mark.parametrize('name, room, file', [
    ('epoch_3.pth', 1000, 'epoch_3.pth'), ('history.json', 100, 'dyrep/history.json'),
    ('structure_2.json', 10, 'dyrep/structure_2.json')])
def test_a_full_disk_leaves_whole_files_and_the_run_goes_on(forker: Forker, straight: Path, tmp_path: Path, name: str,
                                                            room: int, file: str) -> None:
    cfg = dyrep_config(ema=EMA)
    full = Config(cfg.to_dict())
    # 8 iterations an epoch: in the second one
    full.custom_hooks = [*cfg.custom_hooks, dict(type='FullDiskHook', name=name, room=room, at=12)]
    work_dir = tmp_path / 'run'
    ended = forker.train(full, work_dir)
    assert ended.code == 1
    message = ended.output.strip().splitlines()[-1]
    assert message.startswith('OSError: [Errno 27] File too large; nothing was written, an older file is as it was. ')
    assert 'Make room' in message and '--resume' in message and message.endswith(f"'{work_dir / file}'")
    assert list(half_written(work_dir)) == []
    check_whole(work_dir)
    saved = ['epoch_1.pth', 'epoch_2.pth'] if name == 'epoch_3.pth' else ['epoch_1.pth']
    assert sorted(path.name for path in work_dir.glob('*.pth')) == saved
    for path in saved:
        assert unequal_checkpoints(straight, work_dir, path) == []
    if name == 'history.json':
        assert [entry['epoch'] for entry in read_json(work_dir / file)['updates']] == [1]
    done = forker.train(cfg, work_dir, '--resume')
    assert done.code == 0, done.output[-3000:]
    assert unequal(straight, work_dir) == []


def unequal_checkpoints(left: Path, right: Path, name: str) -> list:
    first, second = (read_checkpoint(folder / name) for folder in (left, right))
    return [line for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
            for line in differences(first[key], second[key], key)]


@pytest.mark.slow
def test_the_only_checkpoint_truncated_is_an_error_that_says_what_to_do(forker: Forker, tmp_path: Path) -> None:
    cfg = dyrep_config(default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)))
    assert forker.train(cfg, tmp_path / 'run').code == 0
    last, = (tmp_path / 'run').glob('*.pth')
    last.write_bytes(last.read_bytes()[:20_000])
    before = {path: path.read_bytes() for path in (tmp_path / 'run' / 'dyrep').iterdir()}
    refused = forker.train(cfg, tmp_path / 'run', '--resume')
    assert refused.code == 1
    end = refused.output[refused.output.rindex('ValueError: --resume:'):]
    assert f'{last} can not be read as a checkpoint' in end
    assert 'max_keep_ckpts=1; keep 2 or more. To begin anew, train without --resume' in end
    assert before == {path: path.read_bytes() for path in (tmp_path / 'run' / 'dyrep').iterdir()}


# ---------------------------------------------------------------------- spoilt files of a run

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['truncated', 'text', 'binary', 'types', 'pickle'])
def test_spoilt_files_are_written_anew_from_the_checkpoint(forker: Forker, straight: Path, tmp_path: Path,
                                                           kind: str) -> None:
    work_dir = tmp_path / 'run'
    shutil.copytree(straight / 'dyrep', work_dir / 'dyrep')
    history, structure = work_dir / 'dyrep' / 'history.json', work_dir / 'dyrep' / 'structure_1.json'
    bomb = tmp_path / 'bomb'
    for path in (history, structure):
        path.write_bytes({'truncated': path.read_bytes()[:60], 'text': b'lost', 'binary': bytes(range(256)),
                          'types': b'{"version": 1, "updates": 3, "ops": 5}', 'pickle': pickle.dumps(Bomb(bomb))}[kind])
    done = forker.train(dyrep_config(ema=EMA), work_dir, '--resume', str(straight / 'epoch_3.pth'))
    assert done.code == 0, done.output[-3000:]
    assert unequal(straight, work_dir, 'epoch_4.pth') == [] and not bomb.exists()
    assert set(run_files(work_dir)) == {'history.json', *(f'structure_{epoch}.json' for epoch in range(1, 5))}


def newer_history(checkpoint: Dict[str, Any]) -> None:
    checkpoint['dyrep']['history']['version'] = 2


def newer_branch(checkpoint: Dict[str, Any]) -> None:
    state = checkpoint['state_dict']
    for key in [key for key in state if '.branches.1x1.' in key]:
        state[key.replace('.branches.1x1.', '.branches.5x5.')] = state.pop(key)


def no_history(checkpoint: Dict[str, Any]) -> None:
    del checkpoint['dyrep']['history']


def wrong_history(checkpoint: Dict[str, Any]) -> None:
    checkpoint['dyrep']['history']['updates'] = [3]


@pytest.mark.slow
@pytest.mark.parametrize('spoil, message', [
    (newer_history, "the checkpoint's history has version 2, this mmdyrep reads up to 1; update mmdyrep"),
    (newer_branch, "unknown branch '5x5' in the state dict.*newer version"),
    (no_history, 'entry dyrep without history; was it written by another version'),
    (wrong_history, r"the checkpoint's history is no history of a run: updates\[0\] is '3'")])
def test_a_checkpoint_of_another_version_is_refused_before_anything_changes(straight: Path, tmp_path: Path, spoil: Any,
                                                                            message: str) -> None:
    checkpoint = read_checkpoint(straight / 'epoch_2.pth')
    spoil(checkpoint)
    write_checkpoint(tmp_path / 'newer.pth', checkpoint)
    cfg = dyrep_config(ema=EMA, resume=True, load_from=str(tmp_path / 'newer.pth'))
    seen = []

    class Look(Call):
        priority = 'VERY_HIGH'  # as weights are about to be loaded

        def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
            seen.append({name: value.clone() for name, value in runner.model.state_dict().items()})

    runner = runner_of(cfg, tmp_path / 'run', Look())
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.model.backbone.structure['ops'] == {} and len(seen) == 1
    assert differences(seen[0], {**runner.model.state_dict()}) == []


# ---------------------------------------------------------------------- no memory

def without_memory(runner: Runner) -> None:
    """Let the backbone run out of memory after the first update, if one is due."""
    hook = dyrep_hook(runner)
    if hook.begin == 0 and not hook.history.updates:
        return

    def fail(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')

    runner.model.backbone.register_forward_pre_hook(fail)


@pytest.mark.parametrize('by_epoch', [True, False])
def test_out_of_memory_after_a_growth_names_it(tmp_path: Path, by_epoch: bool) -> None:
    cfg = dyrep_config(by_epoch=by_epoch, images=96, hook=dict(interval=1 if by_epoch else 3, max_macs_ratio=9.0))
    runner = runner_of(cfg, tmp_path, Call(after=without_memory))
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        runner.train()
    entry, = read_json(tmp_path / 'dyrep' / 'history.json')['updates']
    grown, = entry['grown']
    before, text = str(caught.value).split('\n')
    assert before == 'CUDA out of memory. Tried to allocate 2.00 GiB'
    assert text.startswith('DyRep: out of memory in iteration 4, 1 after the update of ')
    assert f'update of {"epoch 1" if by_epoch else "iteration 3"}, which expanded {grown["op"]} by ' in text
    assert 'times the MACs' in text and '--resume and a smaller batch' in text
    assert 'set max_macs_ratio of DyRepHook, now 9.0' in text
    assert str(caught.value.__cause__) == 'CUDA out of memory. Tried to allocate 2.00 GiB'


def test_other_errors_and_out_of_memory_without_growth_stay_as_they_are(tmp_path: Path) -> None:
    def other(runner: Runner) -> None:
        runner.model.backbone.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError('else')))

    for name, begin, call in (('none', 9, Call(iteration=without_memory)), ('else', 0, Call(after=other))):
        runner = runner_of(dyrep_config(images=96, hook=dict(begin=begin)), tmp_path / name, call)
        with pytest.raises(RuntimeError) as caught:
            runner.train()
        assert str(caught.value) == ('else' if name == 'else' else 'CUDA out of memory. Tried to allocate 2.00 GiB')


def test_the_memory_of_the_cpu_runs_out_too() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert ran_out_of_memory(caught.value) and not ran_out_of_memory(RuntimeError('shape mismatch'))
