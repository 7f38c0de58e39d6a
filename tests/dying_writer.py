"""Writes a file again and again in processes that are killed on the way; prints what each of them left.

Usage: python -m tests.dying_writer json|checkpoint|fused operation|byte FOLDER [CONFIG]

`fused` fuses the checkpoints old.pth and new.pth of the folder, trained with the config, in turn.

With `operation` the n-th process dies right before its n-th operation on files, with `byte` as soon as a file of
it would grow beyond a limit. A line of JSON for each: how it ended, what can be read now ('old' or 'new').
"""
import builtins
import io
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

import torch
from mmengine.config import Config

from mmdyrep.deploy import fuse_checkpoint
from mmdyrep.fileio import read_checkpoint, read_json, write_checkpoint, write_json

OPERATIONS = [(tempfile, 'mkstemp'), (os, 'fchmod'), (os, 'close'), (builtins, 'open'), (io, 'open'),
              (torch, 'save'), (os, 'fsync'), (os, 'replace'), (os, 'unlink')]


def die_before(number: int) -> None:
    """Let this process be killed before its operation of this number, counted from 1."""
    count = itertools.count(1)

    def counted(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call

    for module, name in OPERATIONS:
        setattr(module, name, counted(getattr(module, name)))


def die_beyond(size: int) -> None:
    """Let this process be killed when it writes a file beyond this size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def main() -> None:
    kind, way, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if kind == 'json':
        path, write, read = folder / 'history.json', write_json, read_json
        old, new = [['old', i] for i in range(5000)], [['new', i] for i in range(5000)]
        name_of = {'old': lambda value: value == old, 'new': lambda value: value == new}
    elif kind == 'fused':
        cfg = Config.fromfile(sys.argv[4])
        path, read, old, new = folder / 'fused.pth', read_checkpoint, 'old', 'new'
        name_of = {word: lambda value, word=word: value['meta']['mmdyrep']['source'] == f'{word}.pth'
                   for word in (old, new)}

        def write(path: Path, word: str) -> None:
            fuse_checkpoint(cfg, folder / f'{word}.pth', path, out_config=path.with_suffix('.py'))
    else:
        path, write, read = folder / 'epoch_1.pth', write_checkpoint, read_checkpoint
        old, new = ({'state_dict': {'w': torch.full((20000,), fill)}} for fill in (1., 2.))
        name_of = {word: lambda value, like=like: torch.equal(value['state_dict']['w'], like['state_dict']['w'])
                   for word, like in (('old', old), ('new', new))}
    for number in itertools.count(1):
        write(path, old)
        child = os.fork()
        if not child:
            (die_before if way == 'operation' else die_beyond)(number if way == 'operation' else number**3 * 500)
            write(path, new)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        found = [word for word, same in name_of.items() if same(read(path))]
        print(json.dumps({'signal': os.WTERMSIG(status), 'exit': os.WEXITSTATUS(status), 'found': found}))
        if not status:
            break


if __name__ == '__main__':
    main()
