"""The pages of the site: their code runs as printed, one block after the other."""
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from mmdyrep import DyRepBackbone
from mmdyrep.models.building import build_model
from mmdyrep.models.finding import find_backbone
from tests.configs import ROOT
from tests.processes import free_port
from tests.runs import DATA, needs_images

# the other pages tell how a figure was measured, or show commands that take hours
PAGES = sorted([*(ROOT / 'docs' / 'guides').glob('*.md'), *(ROOT / 'docs' / 'notes').glob('*.md'),
                ROOT / 'docs' / 'get_started.md', ROOT / 'docs' / 'how_it_works.md'])
BLOCK = re.compile(r'^```(bash|python)\n(.*?)^```', flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path):
    return BLOCK.findall(page.read_text())


def test_blocks_of_other_languages_are_few():
    kinds = {kind for page in PAGES for kind in re.findall(r'^```(\w[\w-]*)$', page.read_text(), flags=re.MULTILINE)}
    assert kinds <= {'bash', 'python', 'sh'}


def test_the_signature_on_the_reference_page_is_that_of_the_code():
    page = (ROOT / 'docs' / 'notes' / 'api.md').read_text()
    assert f'mmdyrep.DyRepBackbone{inspect.signature(DyRepBackbone._make)}\n' in page


def run(line: str, folder: Path) -> None:
    variables, command = {}, shlex.split(line)
    while '=' in command[0]:
        key, _, value = command.pop(0).partition('=')
        variables[key] = value
    assert command[0] in ('python', 'bash') and (ROOT / command[1]).is_file(), line
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={
        **os.environ, 'PATH': path, 'PYTHONPATH': str(folder), 'OMP_NUM_THREADS': '1', 'PORT': str(free_port()),
        **variables})
    assert done.returncode == 0, f'{line}\n{done.stdout[-3000:]}'


def check_config(code: str, path: Path) -> None:
    path.write_text(code)
    cfg = Config.fromfile(path)
    backbone = find_backbone(build_model(cfg))[1]
    assert isinstance(backbone, DyRepBackbone) and backbone.candidates()


@needs_images
@pytest.mark.slow
@pytest.mark.parametrize('page', [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_code_of_a_page_runs_as_printed(page, tmp_path, monkeypatch):
    for name in ('configs', 'mmdyrep', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'fashion-mnist').symlink_to(DATA.resolve())
    (tmp_path / 'work_dirs').mkdir()
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, (kind, code) in enumerate(blocks(page)):
        if kind == 'bash':
            for line in code.splitlines():
                run(line, tmp_path)
        elif code.startswith('_base_'):
            check_config(code, tmp_path / f'block_{number}.py')
        elif 'read_base' not in code and '...' not in code:  # new-style configs: tests/test_tools has whole ones
            exec(compile(code, f'{page.name}[{number}]', 'exec'), names)
