"""The sdist and the wheel: what is in them, and the main job from a wheel without the checkout."""
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.runs import DATA, ROOT, needs_images

CONFIG = '''
_base_ = 'mmdyrep::small/dyrep_resnet18-w8_b64_fashion-mnist.py'
train_cfg = dict(max_epochs=2)
train_dataloader = dict(dataset=dict(indices=512))
val_dataloader = dict(dataset=dict(indices=200))
test_dataloader = dict(dataset=dict(indices=200))
'''


def checked(*command: Any, **options: Any) -> str:
    done = subprocess.run([str(part) for part in command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, f'{command}\n{done.stdout[-3000:]}'
    return done.stdout


@pytest.fixture(scope='module')
def packed(tmp_path_factory: Any) -> Any:
    """A wheel, made from the sdist, made from a copy of the checkout."""
    folder = tmp_path_factory.mktemp('packed')
    shutil.copytree(ROOT, folder / 'checkout', symlinks=True, ignore=shutil.ignore_patterns(
        '.venv', '.git', 'data', 'work_dirs', '__pycache__', 'build', '*.egg-info', '_build', '.*_cache',
        '.hypothesis'))
    build = 'import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))'
    checked(sys.executable, '-c', build.format('sdist'), folder, cwd=folder / 'checkout')
    sdist, = folder.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / 'source')
    source, = (folder / 'source').iterdir()
    checked(sys.executable, '-c', build.format('wheel'), folder, cwd=source)
    return sdist, next(folder.glob('*.whl'))


def files(*patterns: str) -> set:
    return {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)
            if path.is_file() and '__pycache__' not in path.parts and '.mim' not in path.parts}


@pytest.mark.slow
def test_sdist_and_wheel_hold_what_they_should_and_nothing_else(packed):
    sdist, wheel = packed
    with tarfile.open(sdist) as archive:
        names = {name.split('/', 1)[1] for name in archive.getnames() if '/' in name}
        assert not [member.name for member in archive if member.issym() or member.islnk()]
    assert files('mmdyrep/**/*.py', 'configs/**/*', 'tools/**/*', 'requirements/*', '*.md') <= names
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = files('mmdyrep/**/*.py') | {f'mmdyrep/.mim/{name}' for name in files('configs/**/*', 'tools/**/*')} | {
        'mmdyrep/py.typed', 'mmdyrep/.mim/model-index.yml'}
    assert {name for name in names if '.dist-info/' not in name} == wanted and len(wanted) > 150


@pytest.mark.slow
def test_requirements_name_neither_family_of_libraries(packed):
    archive = zipfile.ZipFile(packed[1])
    lines = archive.read(next(name for name in archive.namelist() if name.endswith('/METADATA'))).decode().splitlines()
    needed = [line for line in lines if line.startswith('Requires-Dist') and 'extra ==' not in line]
    assert needed and not [line for line in needed if 'mm' in line.replace('mmdyrep', '')]
    extras = {line.split(': ')[1] for line in lines if line.startswith('Provides-Extra')}
    assert extras == {'all', 'light', 'maintained', 'mmdet', 'mmpretrain', 'mmseg'}
    assert 'Requires-Python: >=3.10' in lines


@needs_images
@pytest.mark.slow
def test_the_main_job_runs_from_an_installed_wheel_without_the_checkout(packed, tmp_path):
    python, bin_ = tmp_path / 'env' / 'bin' / 'python', tmp_path / 'env' / 'bin'
    checked(sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'env')
    site = Path(checked(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    checked(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', packed[1])
    # PyTorch and the libraries, but not this package: it is installed there by a finder that a .pth file starts
    (site / 'libraries.pth').write_text(sysconfig.get_path('purelib'))
    work = tmp_path / 'work'
    (work / 'data').mkdir(parents=True)
    (work / 'data' / 'fashion-mnist').symlink_to(DATA.resolve())
    (work / 'mine.py').write_text(CONFIG)
    env = {**{key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}, 'OMP_NUM_THREADS': '1'}

    def call(command: str, *arguments: str) -> str:
        return checked(bin_ / f'mmdyrep-{command}', *arguments, cwd=work, env=env)

    where = checked(python, '-c', 'import mmdyrep; print(mmdyrep.__file__)', cwd=work, env=env)
    assert Path(where.strip().splitlines()[-1]) == site / 'mmdyrep' / '__init__.py'
    trained = call('train', 'mine.py', '--work-dir', 'run')
    assert 'DyRep [epoch 2]: expanded' in trained
    fused = call('fuse', 'mine.py', 'run/epoch_2.pth', 'plain.pth', '--out-config', 'plain.py')
    assert 'blocks fused' in fused and (work / 'plain.pth').exists()

    def accuracy(text: str) -> str:
        return text.split('Epoch(test)')[-1].split('accuracy/top1: ')[1].split()[0]

    augmented = accuracy(call('test', 'mine.py', 'run/epoch_2.pth', '--work-dir', 'test'))
    assert augmented == accuracy(call('test', 'plain.py', 'plain.pth', '--work-dir', 'test'))
    call('plot-history', 'run', 'history.png')
    call('plot-structure', 'run/epoch_2.pth', 'structure.png')
    assert 'backbone' in call('complexity', 'mine.py')
    call('wrap', 'mmpretrain::resnet/resnet18_8xb32_in1k.py', 'wrapped.py')
    assert {'history.png', 'structure.png', 'wrapped.py'} <= {path.name for path in work.iterdir()}
