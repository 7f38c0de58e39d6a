"""Files are whole or not there, whatever happens to the process that writes them."""
import errno
import json
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmdyrep.fileio import (
    NoStateDict,
    UnsafeCheckpoint,
    atomic_path,
    read_checkpoint,
    read_json,
    write_checkpoint,
    write_json,
)

STATE = {'conv.weight': torch.arange(6.).view(2, 3), 'conv.bias': torch.zeros(2)}


@pytest.mark.parametrize('way, deadly', [('operation', signal.SIGKILL), ('byte', signal.SIGXFSZ)])
@pytest.mark.parametrize('kind', ['json', 'checkpoint'])
def test_killed_at_any_moment_the_old_file_or_the_new_one_is_there(tmp_path, kind, way, deadly):
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, '-m', 'tests.dying_writer', kind, way, str(tmp_path)], cwd=root,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *deaths, last = map(json.loads, done.stdout.splitlines())
    assert last == {'signal': 0, 'exit': 0, 'found': ['new']}
    assert len(deaths) >= (6 if way == 'operation' else 3)
    assert {death['signal'] for death in deaths} == {deadly}
    assert all(death['found'] == ['old'] for death in deaths)
    # what the dead have left is hidden, and no writer after them minded it
    name, = [path.name for path in tmp_path.iterdir() if not path.name.startswith('.')]
    left = [path.name for path in tmp_path.iterdir() if path.name != name]
    assert left and all(stray.startswith(f'.{name}.') and stray.endswith('.tmp') for stray in left)


@pytest.mark.parametrize('kind', ['json', 'checkpoint'])
@pytest.mark.parametrize('old', [None, 1])
def test_without_room_the_old_file_stays_and_the_message_says_what_to_do(tmp_path, kind, old):
    path = tmp_path / 'file'
    write = write_json if kind == 'json' else (
        lambda path, value: write_checkpoint(path, {'state_dict': {'w': torch.full((1000,), value)}}))
    if old:
        write(path, old)
    before = path.read_bytes() if old else None
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, most))
    try:
        with pytest.raises(OSError) as caught:
            write(path, ['long'] * 1000 if kind == 'json' else 2.)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert 'older file is as it was. Make room or raise the limit (ulimit -f)' in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == (['file'] if old else [])
    assert old is None or path.read_bytes() == before


@pytest.mark.parametrize('old', [None, 'old'])
def test_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, old):
    path = tmp_path / 'file.txt'
    if old:
        path.write_text(old)
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text('half')
        assert temporary.parent == tmp_path
        raise KeyboardInterrupt
    assert [item.name for item in tmp_path.iterdir()] == (['file.txt'] if old else [])
    assert old is None or path.read_text() == old


def test_values_that_are_no_json_leave_the_old_file(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, {'fine': 1})
    for value in (float('nan'), float('inf'), object(), {1j: 0}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, {'value': value})
    assert read_json(path) == {'fine': 1} and len(list(tmp_path.iterdir())) == 1
    checkpoint = tmp_path / 'a.pth'
    write_checkpoint(checkpoint, {'state_dict': STATE})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_checkpoint(checkpoint, {'state_dict': STATE, 'hook': lambda: 0})
    assert torch.equal(read_checkpoint(checkpoint)['state_dict']['conv.weight'], STATE['conv.weight'])
    assert len(list(tmp_path.iterdir())) == 2


def test_folders_are_made_and_permissions_are_the_usual_ones(tmp_path):
    path, usual = tmp_path / 'run' / 'dyrep' / 'history.json', tmp_path / 'usual'
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        try:
            write_json(path, [1])
            usual.unlink(missing_ok=True)
            usual.touch()
            assert os.umask(mask) == mask
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    assert read_json(str(path)) == [1]


def test_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / 'a.json').mkdir()
    with pytest.raises(OSError):
        write_json(tmp_path / 'a.json', [1])
    assert [item.name for item in tmp_path.iterdir()] == ['a.json']


def test_json_of_any_language_comes_back_as_it_was(tmp_path):
    value = {'version': 1, 'ops': {'layer1.0.conv2': ['kxk', '1x1']}, 'word': 'größer', 'figures': [1e-12, 3, None]}
    write_json(tmp_path / 'a.json', value)
    assert read_json(tmp_path / 'a.json') == value
    assert list(read_json(tmp_path / 'a.json')) == list(value)


@pytest.mark.parametrize('content', [b'', b'{"a": 1', b'\x80\x02}', b'\xff\xfe', b'[' * 100_000],
                         ids=['empty', 'half', 'pickle', 'bytes', 'deep'])
def test_files_that_are_no_json_are_named(tmp_path, content):
    (tmp_path / 'broken.json').write_bytes(content)
    with pytest.raises(ValueError, match='broken.json is not a JSON file'):
        read_json(tmp_path / 'broken.json')


# ---------------------------------------------------------------------- checkpoints

def test_checkpoint_of_mmengine_with_its_log_buffers(tmp_path):
    import numpy as np
    checkpoint = {'state_dict': STATE, 'meta': {'epoch': 2}, 'message_hub': {
        'log_scalars': {'loss': HistoryBuffer([1., 2.], [1, 1])}, 'runtime_info': {'lr': np.float64(0.1)}}}
    write_checkpoint(tmp_path / 'epoch_2.pth', checkpoint)
    again = read_checkpoint(tmp_path / 'epoch_2.pth')
    assert again['meta'] == {'epoch': 2} and torch.equal(again['state_dict']['conv.weight'], STATE['conv.weight'])
    assert again['message_hub']['log_scalars']['loss'].current() == 2


def test_bare_state_dict_gets_one_around_it(tmp_path):
    torch.save(STATE, tmp_path / 'bare.pth')
    assert list(read_checkpoint(str(tmp_path / 'bare.pth'))) == ['state_dict']
    assert list(read_checkpoint(tmp_path / 'bare.pth')['state_dict']) == list(STATE)


def test_tensors_come_to_the_cpu_in_their_own_dtype(tmp_path):
    write_checkpoint(tmp_path / 'a.pth', {'state_dict': {'a': torch.ones(2).half(), 'b': torch.tensor(3)}})
    state = read_checkpoint(tmp_path / 'a.pth')['state_dict']
    assert state['a'].dtype == torch.float16 and state['b'].dtype == torch.int64
    assert {value.device.type for value in state.values()} == {'cpu'}


@pytest.mark.parametrize('part', [0, 1, 10, 0.3, 0.9, 0.999])
def test_truncated_checkpoints_are_named(tmp_path, part):
    write_checkpoint(tmp_path / 'whole.pth', {'state_dict': STATE})
    content = (tmp_path / 'whole.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(content[:part if isinstance(part, int) else int(part * len(content))])
    with pytest.raises(ValueError, match=r'(?s)cut\.pth can not be read as a checkpoint.*written completely'):
        read_checkpoint(tmp_path / 'cut.pth')


@pytest.mark.parametrize('content', [b'hello', b'\x80\x04garbage', bytes(range(64)), b'PK\x03\x04' + bytes(60)],
                         ids=['text', 'pickle', 'bytes', 'zip'])
def test_garbage_is_named(tmp_path, content):
    (tmp_path / 'garbage.pth').write_bytes(content)
    with pytest.raises(ValueError, match=r'garbage\.pth can not be read as a checkpoint'):
        read_checkpoint(tmp_path / 'garbage.pth')


@pytest.mark.parametrize('value, message', [
    ([1, 2], 'holds a list, not a checkpoint'), ({}, 'holds no state dict'),
    ({'state_dict': {}}, 'holds no state dict'), ({'state_dict': [1]}, 'holds no state dict'),
    ({'model': STATE}, "holds no state dict: 'model' is no tensor"),
    ({'state_dict': {'a': 3}}, "holds no state dict: 'a' is no tensor")])
def test_files_that_hold_something_else(tmp_path, value, message):
    torch.save(value, tmp_path / 'other.pth')
    with pytest.raises(NoStateDict, match=rf'other\.pth {message}'):
        read_checkpoint(tmp_path / 'other.pth')


class Bomb:
    """Makes a folder if it is unpickled."""

    def __init__(self, path, function=os.mkdir):
        self.path, self.function = path, function

    def __reduce__(self):
        return self.function, (str(self.path), )


class Reached(Bomb):
    """The beginning of a way around, by getattr, which log buffers need."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


class Elsewhere(Bomb):
    """The same from another class."""

    def __reduce__(self):
        return getattr, (torch.Size, 'count')


@pytest.mark.parametrize('old_format', [False, True])
@pytest.mark.parametrize('bomb, named', [(Bomb, 'posix.mkdir'), (Reached, 'getattr'), (Elsewhere, 'getattr')])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, old_format, bomb, named):
    target = tmp_path / 'target'
    torch.save({'state_dict': STATE, 'meta': {'epoch': bomb(target)}}, tmp_path / 'evil.pth',
               _use_new_zipfile_serialization=not old_format)
    with pytest.raises(UnsafeCheckpoint, match=rf'evil\.pth holds ({named}).*could run code.*not read.*If you trust'):
        read_checkpoint(tmp_path / 'evil.pth')
    assert not target.exists()
    # as it would have been
    if bomb is Bomb:
        pickle.loads(pickle.dumps(bomb(target)))
        assert target.exists()


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_a_pickle_is_no_json_and_is_not_run(tmp_path, protocol):
    (tmp_path / 'structure.json').write_bytes(pickle.dumps(Bomb(tmp_path / 'target'), protocol))
    with pytest.raises(ValueError, match=r'structure\.json is not a JSON file'):
        read_json(tmp_path / 'structure.json')
    with pytest.raises(ValueError, match=r'structure\.json can not be read|structure\.json holds posix'):
        read_checkpoint(tmp_path / 'structure.json')
    assert not (tmp_path / 'target').exists()


def test_importing_the_hooks_lets_any_torch_load_the_checkpoints_of_mmengine(tmp_path):
    import mmdyrep  # noqa: F401
    torch.save({'buffer': HistoryBuffer([1., 2.], [1, 1])}, tmp_path / 'a.pth')
    # what mmengine does: since torch 2.6 with weights_only=True
    assert torch.load(tmp_path / 'a.pth', map_location='cpu', weights_only=False)['buffer'].mean() == 1.5


def test_missing_checkpoint(tmp_path):
    for path in (tmp_path / 'none.pth', tmp_path):
        with pytest.raises(FileNotFoundError, match=f'no checkpoint at {path}'):
            read_checkpoint(path)
