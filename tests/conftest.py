"""Settings of all tests."""
import re
from importlib.util import find_spec
from typing import Any, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile('fixed', derandomize=True, deadline=None, max_examples=40, print_blob=True,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.load_profile('fixed')

torch.set_num_threads(1)

# what is said where a library of detection or segmentation, or mmcv's operators, are not in the set of versions
ABSENT = {
    name: re.compile(rf"No module named '{module}|({distribution}|{module}) is not installed|"
                     rf"(The '{distribution}' distribution was not found|PackageNotFoundError.*{distribution})|"
                     rf"{module}\.\w+ is not in the")
    for name, module, distribution in (('mmdet', 'mmdet', 'mmdet'), ('mmseg', 'mmseg', 'mmsegmentation'),
                                       ('mmcv.ops', r'mmcv\._ext', 'mmcv'))
    if find_spec(module.replace('\\', '').split('.')[0]) is None or (
        module == r'mmcv\._ext' and find_spec('mmcv._ext') is None)}
if 'mmdet' in ABSENT or 'mmseg' in ABSENT:
    # mmengine looks in its own registry where that of the default scope, or of a type's prefix, can't be imported
    ABSENT['mmdet or mmseg'] = re.compile(r'is not in the mmengine::\w+ registry')


def pytest_runtest_setup() -> None:
    """Every test draws the same, whichever ran before."""
    torch.manual_seed(0)


def _skip_what_does_not_apply(report: Any, path: str, line: int) -> None:
    """In the light set of versions, what fails for want of a library is skipped with that reason."""
    if report.failed:
        for name, said in ABSENT.items():
            if said.search(str(report.longrepr)):
                report.outcome = 'skipped'
                report.longrepr = (path, line, f'Skipped: {name} is not installed, as in the light set of versions')
                break


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any) -> Iterator[None]:
    """See above."""
    outcome = yield
    _skip_what_does_not_apply(outcome.get_result(), str(item.path), item.location[1] or 0)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: Any) -> Iterator[None]:
    """The same for files that can't be imported."""
    outcome = yield
    _skip_what_does_not_apply(outcome.get_result(), str(getattr(collector, 'path', '')), 0)
