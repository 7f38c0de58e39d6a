"""Which libraries are installed, whether they fit, and where mmengine finds their configs."""
import warnings
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Dict, Iterator, List, Optional, Tuple

from .version import parse_version_info

# module: lowest version, first version that is too new, distributions that it may come from. OpenMMLab's own ended in
# 2024; those of the maintained continuation have other distribution names and the same import names
LIBRARIES: Dict[str, Tuple[str, Optional[str], Tuple[str, ...]]] = {
    'torch': ('2.0', None, ('torch', )),
    'mmengine': ('0.10', '1.0', ('mmengine', 'mmengine-lite', 'onedl-mmengine')),
    'mmpretrain': ('1.2', '2.0', ('mmpretrain', 'onedl-mmpretrain')),
    'mmdet': ('3.3', '4.0', ('mmdet', 'onedl-mmdetection')),
    'mmseg': ('1.2.2', '2.0', ('mmsegmentation', 'onedl-mmsegmentation')),
}
INSTALL = ('In a clone: STACK=original or STACK=maintained bash tools/setup_env.sh. Into an environment of your own '
           'one family, either mmengine and mmpretrain, mmdet, mmsegmentation, or, for today\'s PyTorch, their '
           'maintained continuation onedl-mmengine and onedl-mmpretrain, onedl-mmdetection, onedl-mmsegmentation '
           '(of a clone: pip install ".[maintained]"), never both')


def is_there(module: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return find_spec(module) is not None


def installed(module: str) -> Dict[str, str]:
    """Distributions that a module of the table is installed from, with their versions; normally one or none."""
    found = {}
    for name in LIBRARIES[module][2]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def wanted(module: str) -> str:
    """The versions that fit, as pip writes them."""
    lowest, too_new, _ = LIBRARIES[module]
    return f'{module}>={lowest}' + (f',<{too_new}' if too_new else '')


def misfits() -> List[str]:
    """What is installed in a version that does not fit, a line for each."""
    lines = []
    for module, (lowest, too_new, _) in LIBRARIES.items():
        for name, found in installed(module).items():
            numbers = parse_version_info(found)
            if numbers < parse_version_info(lowest):
                lines.append(f'{name} {found} is too old, {wanted(module)} is needed')
            elif too_new is not None and numbers >= parse_version_info(too_new):
                lines.append(f'{name} {found} is too new, {wanted(module)} is needed')
    return lines


def check_libraries() -> None:
    """Refuse versions that do not fit, all in one message, and warn where two families lie over each other.

    Raises:
        ImportError: If something is too old or too new.
    """
    lines = misfits()
    if lines:
        raise ImportError(f'mmdyrep does not work with what is installed: {"; ".join(lines)}. {INSTALL}')
    for module in LIBRARIES:
        names = list(installed(module))
        if len(names) > 1:
            warnings.warn(f'{" and ".join(names)} are both installed and hold the same module {module}: files of one '
                          f'lie over those of the other. Uninstall both, then install one', stacklevel=3)


def missing(name: str, module: str) -> ImportError:
    """The error of something that is asked for and needs a library that is not installed."""
    return ImportError(f'mmdyrep.{name} needs {wanted(module)}, which is not installed; without it there are '
                       f'mmdyrep.reparam and mmdyrep.dynamics. {INSTALL}')


@contextmanager
def naming_the_library(module: str) -> Iterator[None]:
    """Say which installed library it was that could not be imported: it may refuse another one's version."""
    try:
        yield
    except Exception as error:  # the libraries check by assert
        found = ', '.join(f'{name} {number}' for name, number in installed(module).items()) or module
        raise ImportError(f'{found} is installed, but does not import ({type(error).__name__}: {error}). {INSTALL}'
                          ) from error


@contextmanager
def without_lite_warnings() -> Iterator[None]:
    """Don't warn of an operator that mmcv-lite leaves out, which no classifier here needs."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
        yield


def name_configs() -> None:
    """Let ``mmdyrep::...`` and ``mmseg::...`` be found as ``_base_``.

    mmengine looks for the configs of a module in a distribution whose name it has in a table. This package is not in
    it, and where a distribution has another name, as in the maintained continuation, the module's own name serves.
    """
    from mmengine.config.utils import MODULE2PACKAGE
    # no distribution has this name, so that mmengine asks the module where it lies; of an editable installation it
    # would look where the package is not
    MODULE2PACKAGE['mmdyrep'] = __name__
    for module, distribution in list(MODULE2PACKAGE.items()):
        if module not in ('mmdyrep', distribution) and is_there(module):
            try:
                version(distribution)
            except PackageNotFoundError:
                MODULE2PACKAGE[module] = module
    _leave_scope_alone()
    _install_nothing()


def _leave_scope_alone() -> None:
    """Types in the configs of this package are of the run's default scope: it has no registries of its own."""
    from mmengine.config import Config
    find = Config._get_cfg_path

    def found(cfg_path: str, filename: str) -> Tuple[str, Optional[str]]:
        path, scope = find(cfg_path, filename)
        return path, None if scope == 'mmdyrep' else scope

    if find.__module__ != __name__:
        Config._get_cfg_path = staticmethod(found)


def _install_nothing() -> None:
    """The name of a config in a library that is not installed is an error in ``get_config``, as it is in ``_base_``.

    mmengine's hub would run pip there, and put what it finds over a set of versions that works.
    """
    from mmengine.hub import hub
    from mmengine.utils import is_installed

    def check(package: str) -> None:
        if not is_installed(package):
            raise ModuleNotFoundError(f'{package} is not installed (the light set of versions is for classification '
                                      f'alone), and nothing is installed unasked. {INSTALL}')

    hub.install_package = check
