"""The set-up script: which set it takes, what it says where it can't; lock files; cores that are free."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ..runs import ROOT

SETS = ('original', 'maintained', 'light')


def call(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key not in ('STACK', 'PYTHON')}
    return subprocess.run(['bash', 'tools/setup_env.sh', *arguments], cwd=folder, capture_output=True, text=True,
                          env={**env, **variables})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the script reads."""
    (tmp_path / 'tools').mkdir()
    shutil.copy(ROOT / 'tools' / 'setup_env.sh', tmp_path / 'tools')
    shutil.copy(ROOT / 'setup.py', tmp_path)
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    return tmp_path


def stamp(checkout: Path, stack: str) -> None:
    content = b''.join((checkout / name).read_bytes() for name in (
        f'requirements/{stack}.txt', 'setup.py', 'tools/setup_env.sh'))
    sum_ = subprocess.run(['cksum'], input=content, stdout=subprocess.PIPE, check=True).stdout.decode()
    (checkout / '.venv').mkdir(exist_ok=True)
    (checkout / '.venv' / '.ready').write_text(f'{stack} {sum_}')


def test_another_set_than_the_three_is_refused(checkout):
    done = call(checkout, STACK='modern')
    assert done.returncode == 1 and 'STACK is original, maintained or light, not modern' in done.stderr


@pytest.mark.parametrize('stack', ['', 'light'])
def test_a_python_that_does_not_fit_is_named(checkout, stack):
    done = call(checkout, PYTHON='/bin/false', STACK=stack)
    assert done.returncode == 1 and 'PYTHON=/bin/false is no Python 3.10 to 3.13' in done.stderr
    assert not (checkout / '.venv').exists()


def test_without_any_python_it_says_what_to_do(checkout):
    tools = checkout / 'bin'
    tools.mkdir()
    for name in ('bash', 'dirname', 'cut', 'cat', 'sed', 'printf'):
        (tools / name).symlink_to(shutil.which(name))
    done = call(checkout, PATH=str(tools), STACK='original')
    assert done.returncode == 1 and 'no Python 3.10 or 3.11 (the original set works with no other)' in done.stderr


@pytest.mark.parametrize('stack', SETS)
@pytest.mark.parametrize('asked', [False, True])
def test_a_set_that_is_there_is_used_again(checkout, stack, asked):
    stamp(checkout, stack)
    done = call(checkout, **({'STACK': stack} if asked else {}))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'[setup] using {checkout}/.venv, the {stack} set\n'


def test_an_environment_with_another_set_is_made_anew(checkout):
    stamp(checkout, 'light')
    done = call(checkout, STACK='original', PYTHON='/bin/false')
    assert 'has the light set; it is made anew' in done.stdout and not (checkout / '.venv').exists()


def test_a_link_to_another_environment_is_left_as_it_is(checkout):
    (checkout / 'elsewhere').mkdir()
    (checkout / '.venv').symlink_to(checkout / 'elsewhere')
    done = call(checkout, STACK='light')
    assert done.returncode == 0 and 'a link, as it is' in done.stdout
    assert list((checkout / 'elsewhere').iterdir()) == []


def instead_of_main(checkout: Path, text: str) -> None:
    script = (checkout / 'tools' / 'setup_env.sh').read_text()
    assert script.rstrip().endswith('\nmain')
    (checkout / 'tools' / 'setup_env.sh').write_text(script.rstrip().removesuffix('main') + text)


@pytest.mark.parametrize('forbidden', ['1', ''])
def test_bytecode_is_there_where_python_is_not_to_write_it(checkout, forbidden):
    for name in ('bin', 'lib'):
        (checkout / '.venv' / name).mkdir(parents=True)
    (checkout / '.venv' / 'bin' / 'python').write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (checkout / '.venv' / 'bin' / 'python').chmod(0o755)
    (checkout / '.venv' / 'lib' / 'good.py').write_text('x = 1\n')
    (checkout / '.venv' / 'lib' / 'other_version.py').write_text('print 1\n')
    instead_of_main(checkout, ': >"$LOG"; compile_bytecode; say next')
    done = call(checkout, PYTHONDONTWRITEBYTECODE=forbidden)
    assert done.returncode == 0 and done.stdout.endswith('[setup] next\n'), done.stderr
    found = [path.name.split('.')[0] for path in (checkout / '.venv' / 'lib').glob('__pycache__/*.pyc')]
    assert found == (['good'] if forbidden else [])


FAKE_UV = """#!/bin/sh
echo "links=$UV_FIND_LINKS|index=$UV_DEFAULT_INDEX"
exit $UV_RESULT
"""


@pytest.mark.parametrize(('given', 'told'), [
    ('', ''), ('{0}/a', '{0}/a'), ('{0}/a {0}/b', '{0}/a,{0}/b'), (' {0}/a   {0}/missing ', '{0}/a'),
    ('https://wheels.test/simple {0}/b', 'https://wheels.test/simple,{0}/b')])
@pytest.mark.parametrize('result', [0, 1])
def test_uv_hears_of_the_folders_of_pip_and_where_it_fails_pip_is_asked(checkout, given, told, result):
    for name in ('a', 'b', '.venv/bin'):
        (checkout / name).mkdir(parents=True)
    (checkout / '.venv' / 'bin' / 'uv').write_text(FAKE_UV)
    (checkout / '.venv' / 'bin' / 'python').write_text('#!/bin/sh\necho "asked: $*"\n')
    for name in ('uv', 'python'):
        (checkout / '.venv' / 'bin' / name).chmod(0o755)
    instead_of_main(checkout, 'UV="$VENV/bin/uv" INDEX=here; install six')
    done = call(checkout, PIP_FIND_LINKS=given.format(checkout), UV_RESULT=str(result), UV_FIND_LINKS='',
                UV_DEFAULT_INDEX='')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f'links={told.format(checkout)}|index=here'
    assert [line for line in lines if line.startswith('asked')] == (
        ['asked: -m pip --disable-pip-version-check install six'] if result else [])


@pytest.mark.parametrize('stack', SETS)
def test_lock_files_pin_everything_that_is_asked_for(stack):
    lock = (ROOT / 'requirements' / f'{stack}.txt').read_text().splitlines()
    assert len(lock) > 60 and all(re.match(r'[\w.-]+==[\w.]+( ; .+)?$', line) for line in lock)
    pins = [Requirement(line.split(' ;')[0]) for line in lock]
    asked = [line for name in (f'{stack}.in', 'tests.in')
             for line in (ROOT / 'requirements' / name).read_text().splitlines()
             if line and not line.startswith(('#', '-r'))]
    assert len(asked) > 12
    for line in asked:
        wanted = Requirement(line)
        found = [next(iter(pin.specifier)).version for pin in pins if pin.name == wanted.name]
        assert found and all(version in wanted.specifier for version in found), line
    assert not [pin.name for pin in pins if pin.name in ('mmcv', 'onedl-mmcv') or pin.name.startswith('nvidia')]


def test_no_set_holds_both_families():
    for stack in SETS:
        names = re.findall(r'^([\w-]+)==', (ROOT / 'requirements' / f'{stack}.txt').read_text(), flags=re.MULTILINE)
        assert ('onedl-mmengine' in names) == (stack == 'maintained') != ('mmengine' in names)


def stat(folder: Path, name: str, busy: list) -> Path:
    """Ticks of cores, busy ones of 1000 in all each."""
    lines = ['cpu  1 1 1 1 1 1 1 1 0 0', *(f'cpu{i} {ticks} 0 0 {1000 - ticks} 0 0 0 0 0 0'
                                           for i, ticks in enumerate(busy)), 'intr 5']
    (folder / name).write_text('\n'.join(lines))
    return folder / name


@pytest.mark.parametrize(('busy', 'free'), [
    ((0, 0), 2), ((500, 0), 1), ((1000, 0), 1), ((1000, 1000), 1), ((100, 100, 100, 100), 4), ((1000, 950, 20, 0), 2),
    ((300, 300), 1), ((0, ), 1)])
def test_cores_that_are_free(tmp_path, busy, free):
    before = stat(tmp_path, 'before', [0] * len(busy))
    # the later file has as many ticks again
    lines = [f'cpu{i} {ticks} 0 0 {2000 - ticks} 0 0 0 0 0 0' for i, ticks in enumerate(busy)]
    (tmp_path / 'after').write_text('\n'.join(lines))
    done = subprocess.run(['bash', str(ROOT / 'tools' / 'free_cores.sh'), str(before), str(tmp_path / 'after')],
                          capture_output=True, text=True, check=True)
    assert int(done.stdout) == free


def test_a_machine_whose_cores_are_busy_has_one():
    script = [sys.executable, '-c', 'while True: pass']
    loads = [subprocess.Popen(script) for _ in range(2 * len(os.sched_getaffinity(0)))]
    try:
        done = subprocess.run(['bash', str(ROOT / 'tools' / 'free_cores.sh')], capture_output=True, text=True)
    finally:
        for load in loads:
            load.kill()
            load.wait()
    assert done.stdout == '1\n'
