"""What `import mmdyrep` says of libraries that are missing or do not fit, and the configs that it makes known."""
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config

import mmdyrep
from mmdyrep import libraries
from mmdyrep.version import parse_version_info

ROOT = Path(__file__).parents[1]


@pytest.fixture
def distributions(monkeypatch):
    """Versions of what is installed, in place of the true ones."""
    found = {}

    def version(name):
        if name not in found:
            raise PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(libraries, 'version', version)
    return found


@pytest.mark.parametrize(('text', 'numbers'), [
    ('1.2.3', (1, 2, 3)), ('0.10.7', (0, 10, 7)), ('2.1.2+cpu', (2, 1, 2)), ('2.0.0rc4', (2, 0, 0)),
    ('1.0rc1.2', (1, 0)), ('2.14.1', (2, 14, 1)), ('dev', ())])
def test_numbers_of_a_version(text, numbers):
    assert parse_version_info(text) == numbers


def test_version_info_is_that_of_the_version():
    assert '.'.join(map(str, mmdyrep.version_info)) == mmdyrep.__version__


@pytest.mark.parametrize(('found', 'said'), [
    ({'torch': '1.13.1'}, ['torch 1.13.1 is too old, torch>=2.0 is needed']),
    ({'mmengine': '0.9.1'}, ['mmengine 0.9.1 is too old, mmengine>=0.10,<1.0 is needed']),
    ({'onedl-mmengine': '1.0.0'}, ['onedl-mmengine 1.0.0 is too new, mmengine>=0.10,<1.0 is needed']),
    ({'mmdet': '2.28.2', 'mmsegmentation': '0.30.0', 'torch': '2.1.2'},
     ['mmdet 2.28.2 is too old, mmdet>=3.3,<4.0', 'mmsegmentation 0.30.0 is too old, mmseg>=1.2.2,<2.0']),
])
def test_all_that_does_not_fit_is_in_one_message(distributions, found, said):
    distributions.update(found)
    with pytest.raises(ImportError) as error:
        libraries.check_libraries()
    assert all(line in str(error.value) for line in said) and 'pip install ".[maintained]"' in str(error.value)
    assert str(error.value).count('is needed') == len(said)


@pytest.mark.parametrize('found', [
    {}, {'torch': '2.0.0', 'mmengine': '0.10.0', 'mmpretrain': '1.2.0', 'mmdet': '3.3.0', 'mmsegmentation': '1.2.2'},
    {'torch': '2.14.1', 'onedl-mmengine': '0.10.12', 'onedl-mmpretrain': '1.3.6', 'onedl-mmdetection': '3.5.1'}])
def test_nothing_is_said_of_what_fits(distributions, recwarn, found):
    distributions.update(found)
    libraries.check_libraries()
    assert not recwarn.list


def test_two_families_over_each_other_are_warned_of(distributions):
    distributions.update({'mmengine': '0.10.7', 'onedl-mmengine': '0.10.12'})
    with pytest.warns(UserWarning, match='mmengine and onedl-mmengine are both installed.*Uninstall both'):
        libraries.check_libraries()


def test_a_library_that_refuses_another_is_named(distributions):
    distributions['mmpretrain'] = '1.2.0'
    with pytest.raises(ImportError, match=r'^mmpretrain 1\.2\.0 is installed, but .* \(AssertionError: MMCV'):
        with libraries.naming_the_library('mmpretrain'):
            raise AssertionError('MMCV==1.0 is used but incompatible')


def test_without_mmengine_what_needs_it_says_so():
    code = ('import sys\n'
            'find = sys.meta_path[:]\n'
            'class Hiding:\n'
            '    def find_spec(self, name, path=None, target=None):\n'
            '        if name.split(".")[0] in ("mmengine", "mmcv", "mmpretrain"): return None\n'
            '        return next((s for s in (f.find_spec(name, path, target) for f in find) if s), None)\n'
            'sys.meta_path[:] = [Hiding()]\n'
            'import mmdyrep, mmdyrep.reparam\n'
            'from mmdyrep import DyRepHook\n')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r'ImportError: mmdyrep\.DyRepHook needs mmengine>=0\.10,<1\.0, which is not installed', last)


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'mmdyrep' has no attribute 'other'"):
        mmdyrep.other  # noqa: B018


@pytest.mark.parametrize('name', ['dyrep/resnet50_8xb32_in1k.py', 'small/dyrep_resnet18-w8_b64_fashion-mnist.py'])
def test_configs_of_this_package_are_found_by_name(tmp_path, name):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = 'mmdyrep::{name}'\n")
    ours, found = Config.fromfile(ROOT / 'configs' / name), Config.fromfile(path)
    # no scope is put into them that would have to be a registry
    assert found.to_dict() == ours.to_dict() == get_config(f'mmdyrep::{name}').to_dict()
    libraries.name_configs()
    assert Config.fromfile(path).to_dict() == ours.to_dict()
    path.write_text("_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'\n")
    assert Config.fromfile(path).model['_scope_'] == 'mmpretrain'


def test_a_library_under_another_distribution_name_is_found_by_its_module(distributions, monkeypatch):
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.setitem(MODULE2PACKAGE, 'mmaction', 'mmaction2')  # not installed: left as it is
    monkeypatch.setattr(libraries, 'is_there', lambda module: module == 'mmseg')  # in the light set, too
    distributions['onedl-mmsegmentation'] = '1.4.2'
    libraries.name_configs()
    assert MODULE2PACKAGE['mmseg'] == 'mmseg' and MODULE2PACKAGE['mmaction'] == 'mmaction2'
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    distributions['mmsegmentation'] = '1.2.2'
    libraries.name_configs()
    assert MODULE2PACKAGE['mmseg'] == 'mmsegmentation'


def test_a_config_of_a_library_that_is_not_there_is_an_error_and_installs_nothing(monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, 'check_call', started.append)
    monkeypatch.setitem(MODULE2PACKAGE, 'mmdet', 'mm-of-another-name')
    with pytest.raises(ModuleNotFoundError, match='mm-of-another-name is not installed .*STACK=maintained bash tools/'):
        get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    assert not started


def test_tools_print_no_warnings_of_other_packages():
    """In any set: of operators that mmcv-lite leaves out, of pkg_resources, which mmengine uses."""
    done = subprocess.run([sys.executable, ROOT / 'tools' / 'wrap_config.py', 'mmpretrain::resnet/no.py', 'out.py'],
                          cwd=ROOT, capture_output=True, text=True)
    assert re.match(r'FileNotFoundError: .*no\.py', done.stderr) and 'Warning' not in done.stderr, done.stderr
