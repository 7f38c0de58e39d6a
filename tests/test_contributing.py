"""CONTRIBUTING.md, followed to the letter in a copy of the checkout."""
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'CONTRIBUTING.md').read_text()
STEP = re.compile(r'(?:A new file `(?P<new>[^`]+)`:|In `(?P<old>[^`]+)`, in front of `(?P<anchor>[^`]+)`:)\n\n'
                  r'```python\n(?P<code>.*?)```|```bash\n(?P<command>.*?)```', flags=re.DOTALL)


def section(title: str) -> str:
    return TEXT.split(f'## {title}')[1].split('\n## ')[0]


@pytest.mark.slow
@pytest.mark.parametrize(('title', 'steps'), [('A new metric', 5), ('A new branch', 5)])
def test_who_follows_it_gets_passing_tests(title, steps, tmp_path):
    for name in ('mmdyrep', 'tests'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    found = list(STEP.finditer(section(title)))
    assert len(found) == steps
    for step in found:
        if step['new']:
            assert not (tmp_path / step['new']).exists()
            (tmp_path / step['new']).write_text(step['code'])
        elif step['old']:
            path, anchor = tmp_path / step['old'], step['anchor']
            text = path.read_text()
            assert text.count(f'\n{anchor}\n') == 1, f'{anchor!r} in {path}'
            path.write_text(text.replace(f'\n{anchor}\n', f'\n{step["code"]}{anchor}\n'))
        else:
            command = shlex.split(step['command'])
            assert command[0] == 'python'
            done = subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, env={**os.environ, 'PYTHONPATH': str(tmp_path)})
            assert done.returncode == 0 and re.search(r'\d passed', done.stdout), done.stdout[-3000:]


def test_its_links_lead_somewhere():
    links = re.findall(r'\]\(([^)#:]+)\)', TEXT)
    assert len(links) > 1 and [link for link in links if not (ROOT / link).exists()] == []
