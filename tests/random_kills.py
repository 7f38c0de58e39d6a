"""Trainings killed at random moments of the wall clock and resumed, over and over, compared with straight runs.

Usage: python -m tests.random_kills FOLDER [--kills 50] [--seed 0]
"""
import argparse
import contextlib
import json
import random
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import torch
from mmengine.config import Config

from mmdyrep.fileio import read_checkpoint, read_json
from tests.forking import Forker, Training
from tests.resuming import SAVED, dyrep_config, run_files, without_seconds
from tests.runs import differences

EMA = dict(momentum=0.1)


def configs() -> Dict[str, Config]:
    """The runs to kill."""
    online = dyrep_config(workers=1, default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)))
    online.model.backbone.online = True
    return {'epochs-ema': dyrep_config(ema=EMA), 'iterations-ema': dyrep_config(by_epoch=False, ema=EMA),
            'worker-keep-one-online': online}


@dataclass
class Tally:
    """What has been done.

    Args:
        kills (int): By SIGKILL or SIGTERM, in time.
        terminated (int): Those by SIGTERM.
        unsaved (int): Kills before any checkpoint was there.
        in_checkpoint (int): Kills that left a half written checkpoint.
        in_json (int): Kills that left a half written history or structure.
        resumes (int): Starts from a checkpoint.
        compared (dict): Runs that ended equal to the straight one, by config.
        moments (list): Signal, seconds of training and file that was waited for of every kill.
    """

    kills: int = 0
    terminated: int = 0
    unsaved: int = 0
    in_checkpoint: int = 0
    in_json: int = 0
    resumes: int = 0
    compared: Dict[str, int] = field(default_factory=dict)
    moments: List[str] = field(default_factory=list)


def wait_for_training(training: Training) -> None:
    """Wait for the end of all preparations."""
    while training.poll() is None and 'ops can be expanded' not in training.output:
        time.sleep(0.002)


def end_randomly(training: Training, work_dir: Path, seconds: float, rng: random.Random) -> str:
    """Kill a training within so many seconds, half of the time when it writes a file; tells how, '' if it was over."""
    deadly = signal.SIGTERM if rng.random() < 0.2 else signal.SIGKILL
    moment, after = rng.uniform(0, seconds), rng.uniform(0, 0.001)
    writing = rng.choice(['', '', '', '*.pth*', '*.pth*', 'dyrep/*.json*'])
    wait_for_training(training)
    begin = time.monotonic()
    while time.monotonic() - begin < moment and training.poll() is None:
        time.sleep(min(0.01, max(0., moment - (time.monotonic() - begin))))
    if writing:
        old = states(work_dir, writing)
        while training.poll() is None and states(work_dir, writing) <= old:
            time.sleep(0.0002)
        time.sleep(after)
    code = training.kill(deadly)
    if code == -deadly:
        return f'{deadly.name} after {time.monotonic() - begin:.3f} s {writing}'.strip()
    assert code == 0, f'ended by itself with {code}:\n{training.output[-3000:]}'
    return ''


def states(work_dir: Path, pattern: str) -> Set[Tuple[str, int, int]]:
    """Names, times and sizes of files, hidden ones too."""
    found = set()
    for path in work_dir.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns, path.stat().st_size))
    return found


def half_written(work_dir: Path) -> Iterator[Path]:
    """Files that are being written, or were."""
    yield from work_dir.glob('.*.tmp')
    yield from work_dir.glob('dyrep/.*.tmp')


def check_whole(work_dir: Path) -> None:
    """Every file of a killed run can be read, but for the hidden ones."""
    for path in work_dir.glob('*.pth'):
        read_checkpoint(path)
    for path in work_dir.glob('dyrep/*.json'):
        read_json(path)


def unequal(straight: Path, resumed: Path, which: str = '*.pth') -> List[str]:
    """Where the checkpoints and files of two runs differ, times left out."""
    found = differences(run_files(straight), run_files(resumed), 'files')
    # a run killed between writing and deleting keeps one more than max_keep_ckpts
    for path in sorted(straight.glob(which)):
        left, right = (torch.load(folder / path.name, map_location='cpu', weights_only=False)
                       for folder in (straight, resumed))
        for key in SAVED:
            found += differences(*(without_seconds(part.get(key)) if key == 'dyrep' else part.get(key)
                                   for part in (left, right)), f'{path.name}: {key}')
    return found + [f'{path} is left' for path in half_written(resumed)]


def kill_until_done(forker: Forker, cfg: Config, work_dir: Path, straight: Path, seconds: float, rng: random.Random,
                    tally: Tally, most: int = 8) -> None:
    """Train with kills in between until a training ends by itself, then compare."""
    arguments: List[str] = []
    saved = False
    for attempt in range(most + 1):
        training = forker.start(cfg, work_dir, *arguments)
        killed = end_randomly(training, work_dir, seconds, rng) if attempt < most else ''
        if attempt == most:
            training.wait()
        tally.resumes += 'resumed epoch' in training.output
        if not killed:
            break
        tally.kills += 1
        tally.terminated += 'SIGTERM' in killed
        tally.moments.append(killed)
        assert any(work_dir.glob('*.pth')) or not saved, 'no checkpoint is left'
        saved = any(work_dir.glob('*.pth'))
        tally.unsaved += not saved
        tally.in_checkpoint += any(work_dir.glob('.*.tmp'))
        tally.in_json += any(work_dir.glob('dyrep/.*.tmp'))
        check_whole(work_dir)
        arguments = ['--resume']
    assert training.code == 0, training.output[-3000:]
    assert unequal(straight, work_dir) == []


def main(folder: Path, kills: int, seed: int) -> Tally:
    """Kill so often, with at least a fifth of the kills while a file is written; raises if a run ends otherwise."""
    rng, tally = random.Random(seed), Tally()
    folder.mkdir(parents=True, exist_ok=True)
    with Forker() as forker:
        seconds = {}
        for name, cfg in configs().items():
            forker.train(cfg, folder / f'{name}-first')  # files come into memory
            done = forker.start(cfg, folder / name)
            wait_for_training(done)
            begin = time.monotonic()
            done.wait()
            seconds[name] = time.monotonic() - begin
            assert done.code == 0, done.output[-3000:]
            tally.compared[name] = 0
        attempt = 0
        while (tally.kills < kills or tally.in_checkpoint + tally.in_json < kills / 5
               or not all(tally.compared.values())):
            assert attempt < 2 * kills + 6, f'seed {seed}: too few kills came while a file was written, {tally}'
            name = list(seconds)[attempt % len(seconds)]
            work_dir = folder / f'{name}-{attempt}'
            first = len(tally.moments)
            try:
                kill_until_done(forker, configs()[name], work_dir, folder / name, seconds[name], rng, tally)
            except Exception as error:
                raise AssertionError(f'seed {seed}, {work_dir}, killed by {tally.moments[first:]}: {error}') from error
            tally.compared[name] += 1
            attempt += 1
    return tally


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path, help='for the runs; new or empty')
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(asdict(main(args.folder, args.kills, args.seed)), indent=1))
