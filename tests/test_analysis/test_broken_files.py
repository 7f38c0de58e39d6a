"""Files of a run that are spoilt: one clear message, nothing in them is run."""
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from mmdyrep.analysis.run_files import read_run
from mmdyrep.analysis.structure_file import read_structure
from mmdyrep.engine.history import History, check_history
from tests.runs import ROOT

from .runs import history, scalars


class Bomb:
    """Makes a folder if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path), )


@pytest.fixture
def work_dir(tmp_path):
    scalars(tmp_path, '20250101_000000', [1, 2], float)
    history(tmp_path, [(1, {'a': ['1x1']}, {}), (2, {}, {'a': ['1x1']})])
    (tmp_path / 'dyrep' / 'structure_1.json').write_text('{"version": 1, "ops": {"a": ["kxk", "1x1"]}}')
    assert read_run(tmp_path).history and read_structure(tmp_path / 'dyrep' / 'structure_1.json').ops
    return tmp_path


ENTRY = {'epoch': 1, 'iter': 8, 'grown': [], 'cut': []}
WRONG = {
    'list': ([], 'it holds a list'), 'newer': ({'version': 2, 'updates': []}, 'version 2.*reads up to 1; update'),
    'version': ({'version': 'x'}, "its version is 'x'"), 'updates': ({'updates': {}}, "updates is '{}'"),
    'entry': ({'updates': [3]}, r"updates\[0\] is '3'"),
    'no iter': ({'updates': [ENTRY, {'epoch': 1}]}, r'updates\[1\] has no iter'),
    'grown': ({'updates': [{**ENTRY, 'grown': [{'op': 1, 'branches': []}]}]}, r"updates\[0\].grown\[0\].op is '1'"),
    'cost': ({'updates': [{**ENTRY, 'macs': {'backbone': 'much'}}]}, r"updates\[0\].macs.backbone is 'much'"),
    'true': ({'iterations': True}, "iterations is 'True'")}


@pytest.mark.parametrize('case', WRONG)
def test_a_history_of_wrong_content_is_named_with_what_is_wrong(work_dir, case):
    value, message = WRONG[case]
    path = work_dir / 'dyrep' / 'history.json'
    path.write_text(json.dumps(value))
    for read in (lambda: read_run(work_dir), lambda: read_structure(work_dir / 'dyrep' / 'structure_1.json')):
        with pytest.raises(ValueError, match=rf'history\.json.*{message}'):
            read()
    with pytest.raises(ValueError, match=message):
        History(value)


def test_what_the_hook_writes_is_a_history():
    assert check_history(History().state(), 'x') and check_history({}, 'x') == {}


SPOILT = {'truncated': b'{"version": 1, "upd', 'text': b'lost', 'binary': bytes(range(256)), 'empty': b'',
          'pickle': b''}


@pytest.mark.parametrize('name', ['history.json', 'structure_1.json'])
@pytest.mark.parametrize('kind', SPOILT)
def test_files_that_are_no_json_are_named_and_never_run(work_dir, name, kind):
    bomb = work_dir / 'bomb'
    path = work_dir / 'dyrep' / name
    path.write_bytes(pickle.dumps(Bomb(bomb)) if kind == 'pickle' else SPOILT[kind])
    with pytest.raises(ValueError, match=rf'{name} is not a JSON file'):
        read_run(work_dir)
    with pytest.raises(ValueError, match=rf'{name} is not a JSON file'):
        read_structure(work_dir / 'dyrep' / 'structure_1.json')
    assert not bomb.exists()


@pytest.mark.parametrize('tool, file', [('plot_history.py', 'history.json'), ('plot_structure.py', 'evil.pth')])
def test_the_tools_say_it_in_one_message(work_dir, tool, file):
    bomb, path = work_dir / 'bomb', work_dir / 'dyrep' / file
    if file == 'evil.pth':
        import torch
        torch.save({'state_dict': {'a': torch.ones(1)}, 'meta': Bomb(bomb)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(bomb)))
    arguments = [work_dir if tool == 'plot_history.py' else path, work_dir / 'out.png']
    command = [sys.executable, str(ROOT / 'tools' / 'analysis_tools' / tool), *map(str, arguments)]
    done = subprocess.run(command, text=True, capture_output=True, cwd=ROOT,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    message = 'holds posix.mkdir, which could run code' if file == 'evil.pth' else 'is not a JSON file'
    assert f'{path} {message}' in done.stderr
    assert not bomb.exists() and not Path(work_dir / 'out.png').exists()
