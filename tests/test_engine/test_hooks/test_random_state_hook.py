"""RandomStateHook: a run that was killed and resumed ends with the bytes of one that ran straight through."""
import copy
import random
from pathlib import Path
from typing import Any, List, Sequence

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmdyrep.engine.random_state import FetchWatcher, set_random_state, watch_fetches
from tests.resuming import killed_and_resumed
from tests.runs import map_loader, needs_images, small_config, toy_runner

EMA = [dict(type='EMAHook', momentum=0.1)]


@needs_images
@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_epoch_loop_killed_in_an_epoch_and_resumed_is_exact(tmp_path: Path, workers: int) -> None:
    assert killed_and_resumed(small_config(workers=workers, custom_hooks=EMA), tmp_path) == []


@needs_images
@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_iteration_loop_killed_anywhere_and_resumed_is_exact(tmp_path: Path, workers: int) -> None:
    cfg = small_config(by_epoch=False, workers=workers, custom_hooks=EMA)
    assert killed_and_resumed(cfg, tmp_path) == []


@needs_images
@pytest.mark.slow
def test_iteration_loop_over_a_finite_loader_is_exact(tmp_path: Path) -> None:
    # persistent workers are no obstacle here: the skipped batches go through them again
    cfg = small_config(by_epoch=False, workers=1, images=512, train_dataloader=dict(
        sampler=dict(type='DefaultSampler'), persistent_workers=True))
    assert killed_and_resumed(cfg, tmp_path) == []


@needs_images
@pytest.mark.slow
@pytest.mark.parametrize('by_epoch', [True, False])
def test_without_the_hook_a_resumed_run_differs(tmp_path: Path, by_epoch: bool) -> None:
    cfg = small_config(by_epoch=by_epoch)
    del cfg.default_hooks['random_state']
    found = killed_and_resumed(cfg, tmp_path)
    assert any(line.startswith('state_dict.') for line in found)


def draws() -> List[Any]:
    return [random.random(), np.random.rand(), torch.rand(1).item()]


def test_state_is_a_function_of_seed_step_and_rank() -> None:
    seen = []
    for seed, step, rank in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32 - 1, 10**9, 7)]:
        set_random_state(seed, step, rank)
        first = draws()
        assert draws() != first
        set_random_state(seed, step, rank)
        assert draws() == first
        seen += first
    assert len(set(seen)) == len(seen)


class Endless(torch.utils.data.IterableDataset):
    """Samples drawn from the process's random state, without a length."""

    def __iter__(self) -> Any:
        while True:
            yield torch.rand(2)


def endless() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(Endless(), batch_size=3)


class Collect(Hook):
    """Takes part in fetches as a hook would that refills batches."""

    def __init__(self) -> None:
        self.fetched: List[Any] = []

    def before_train(self, runner: Runner) -> None:
        watch_fetches(runner).after.append(lambda index, batch: self.fetched.append((index, batch.tolist())))


def test_iterable_dataset_without_length_is_skipped_as_it_was_drawn(tmp_path: Path) -> None:
    loader = endless()
    straight = toy_runner(tmp_path, f'{tmp_path.name}-straight', loader=loader)
    straight.train()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))
    collect = Collect()
    resumed = toy_runner(tmp_path, f'{tmp_path.name}-resumed', loader=loader, hooks=[collect], resume=True)
    resumed.train()
    assert len(straight.model.seen) == 6
    assert resumed.model.seen == straight.model.seen[4:]
    assert collect.fetched == list(enumerate(batch for batch, _ in straight.model.seen))


class SkippingLoop(IterBasedTrainLoop):
    """A loop as later versions of mmengine have it: it asks the iterator to skip, or does not skip at all."""

    fast_forward_on_resume = False

    def run(self) -> Any:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if not self.fast_forward_on_resume:
            self.dataloader_iterator.skip_iter(self._iter)
        while self._iter < self._max_iters:
            self.run_iter(next(self.dataloader_iterator))
        return self.runner.model


def resumed_by(folder: Path, hooks: Sequence[Hook], forward: bool = False) -> Runner:
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_4.pth'))
    runner = toy_runner(folder, f'{folder.name}-resumed', loader=endless(), hooks=hooks, resume=True)
    runner._train_loop = SkippingLoop(runner, endless(), max_iters=6)
    runner._train_loop.fast_forward_on_resume = forward
    runner.train()
    return runner


def test_a_loop_that_lets_its_iterator_skip_fetches_and_draws_as_before(tmp_path: Path) -> None:
    straight = toy_runner(tmp_path, f'{tmp_path.name}-straight', loader=endless())
    straight.train()
    collect = Collect()
    resumed = resumed_by(tmp_path, [collect])
    assert resumed.model.seen == straight.model.seen[4:] and len(resumed.model.seen) == 2
    assert collect.fetched == list(enumerate(batch for batch, _ in straight.model.seen))


def test_a_loop_that_does_not_skip_goes_on_with_the_numbers_of_its_iterations(tmp_path: Path) -> None:
    toy_runner(tmp_path, f'{tmp_path.name}-straight', loader=endless()).train()
    collect = Collect()
    resumed_by(tmp_path, [collect], forward=True)
    assert [index for index, _ in collect.fetched] == [4, 5]


def test_what_else_the_iterator_has_is_reached_through_the_watcher() -> None:
    class Iterator:
        _epoch = 7

        def __next__(self) -> int:
            return 1

    watcher = FetchWatcher(Iterator())
    assert watcher._epoch == 7 and next(watcher) == 1 and watcher.index == 1
    with pytest.raises(AttributeError, match="'Iterator' object has no attribute 'other'"):
        watcher.other  # noqa: B018
    assert copy.copy(watcher).iterator is watcher.iterator


def warnings_of(runner: Runner, caplog: Any) -> str:
    runner.logger.addHandler(caplog.handler)
    caplog.clear()
    runner.train()
    return '\n'.join(record.getMessage() for record in caplog.records if 'RandomStateHook: ' in record.getMessage())


def test_an_exact_run_is_not_warned_of(tmp_path: Path, caplog: Any) -> None:
    assert warnings_of(toy_runner(tmp_path, f'{tmp_path.name}-iter'), caplog) == ''


@pytest.mark.parametrize('options, remedy', [
    (dict(seed=None), 'randomness=dict(seed='),
    (dict(deterministic=False), 'randomness.deterministic=True'),
    (dict(by_epoch=True), 'by_epoch=True and the interval in epochs'),
    (dict(by_epoch=True, loader=map_loader(num_workers=1, persistent_workers=True)),
     'persistent_workers=False'),
    (dict(wrapper=dict(accumulative_counts=3)), 'be a multiple of 3'),
    (dict(param_scheduler=[dict(type='ReduceOnPlateauLR', monitor='loss')]), 'one that follows epochs or iterations'),
    (dict(hooks=[dict(type='EarlyStoppingHook', monitor='accuracy')]), 'patience anew'),
], ids=lambda value: None if isinstance(value, str) else '-'.join(value))
def test_what_is_not_exact_is_said_once_with_the_remedy(tmp_path: Path, caplog: Any, options: dict,
                                                        remedy: str) -> None:
    said = warnings_of(toy_runner(tmp_path, tmp_path.name, **options), caplog)
    assert said.count(remedy) == 1


def test_another_seed_than_the_checkpoints_is_said(tmp_path: Path, caplog: Any) -> None:
    toy_runner(tmp_path, f'{tmp_path.name}-first', seed=5).train()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))
    said = warnings_of(toy_runner(tmp_path, f'{tmp_path.name}-second', seed=6, resume=True), caplog)
    assert 'set randomness.seed=5' in said and said.count('\n') == 0


class Drawn(torch.utils.data.Dataset):
    """Random numbers of the worker that fetches."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([np.random.rand(), torch.rand(1).item()])


@pytest.mark.parametrize('workers', [0, 2])
def test_epochs_repeat_the_draws_of_workers_and_the_log_says_so(tmp_path: Path, caplog: Any, workers: int) -> None:
    loader = dict(batch_size=3, num_workers=workers, dataset=Drawn(), persistent_workers=False,
                  sampler=dict(type='DefaultSampler', shuffle=True), collate_fn=dict(type='default_collate'))
    runner = toy_runner(tmp_path, tmp_path.name, by_epoch=True, loader=loader)
    said = warnings_of(runner, caplog)
    batches = [batch for batch, _ in runner.model.seen]
    assert (batches[:2] == batches[2:]) == (workers > 0)
    assert ('repeats the same augmentation draws' in said) == (workers > 0)


def test_watching_refuses_an_epoch_loop(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, tmp_path.name, by_epoch=True)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    with pytest.raises(TypeError, match='EpochBasedTrainLoop does not fetch'):
        watch_fetches(runner)
