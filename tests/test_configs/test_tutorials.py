"""The tutorials run as printed, and as kept: what they print has the same form."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configs import ROOT
from tests.runs import DATA, needs_images

sys.path.insert(0, str(ROOT / 'docs'))
import notebooks  # noqa: E402

TUTORIALS = sorted((ROOT / 'docs' / 'tutorials').glob('*.ipynb'))


def outputs(notebook):
    return [''.join(line for output in cell['outputs'] for line in output.get('text', ()))
            for cell in notebooks.code_cells(notebook)]


def form(text):
    """Words and lines, without figures, times and the names of ops."""
    return {re.sub(r'[\d.,e+-]+', '#', line).split('#')[0].strip() for line in text.splitlines()}


@pytest.mark.parametrize('path', TUTORIALS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_the_page_shows_them(path):
    notebook = json.loads(path.read_text())
    cells = list(notebooks.code_cells(notebook))
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(map(bool, outputs(notebook))) >= 4 and 'Traceback' not in str(outputs(notebook))
    text = notebooks.page(notebook, path.stem)
    assert all(said.rstrip() in text for said in outputs(notebook))
    assert '/root' not in text and '/tmp' not in text


@needs_images
@pytest.mark.slow
@pytest.mark.parametrize('path', TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs_as_printed(path, tmp_path):
    for name in ('configs', 'mmdyrep', 'tools', 'docs'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'fashion-mnist').symlink_to(DATA.resolve())
    code = ('import json, sys; from pathlib import Path; sys.path.insert(0, "docs"); import notebooks; '
            'done = notebooks.run(Path(sys.argv[1])); print("RAN " + json.dumps(done))')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(path)], cwd=tmp_path, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**notebooks.environment(), 'PYTHONPATH': str(tmp_path), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    fresh = outputs(json.loads(done.stdout.rpartition('RAN ')[2]))
    kept = outputs(json.loads(path.read_text()))
    assert [bool(text) for text in fresh] == [bool(text) for text in kept]
    for now, then in zip(fresh, kept):
        assert form(then) & form(now) or not then, (then, now)


def test_commands_and_values_of_a_cell_are_what_jupyter_would_show(tmp_path):
    cell = dict(cell_type='code', metadata={}, execution_count=None, outputs=[])
    source = '!echo first \\\n    second\nx = 2\nprint("third")\nx + 1'
    (tmp_path / 'a.ipynb').write_text(json.dumps(dict(cells=[
        dict(cell_type='markdown', metadata={}, source=['# Title']), dict(cell, source=source.splitlines(True))])))
    done = notebooks.run(Path(tmp_path / 'a.ipynb'))
    assert outputs(done) == ['first second\nthird\n3\n']
    assert notebooks.page(done, 'a').startswith(
        '# Title\n\n```bash\necho first \\\n    second\n```\n\n```python\nx = 2\nprint("third")\nx + 1\n```\n\n'
        '```text\nfirst second\nthird\n3\n```\n')
    (tmp_path / 'a.ipynb').write_text(json.dumps(dict(cells=[dict(cell, source=['!exit 3'])])))
    with pytest.raises(RuntimeError, match='exit 3'):
        notebooks.run(tmp_path / 'a.ipynb')
