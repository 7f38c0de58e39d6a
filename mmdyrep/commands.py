"""Console scripts: the tools of this package, from wherever it is installed."""
import runpy
import sys
from pathlib import Path

TOOLS = Path(__file__).parent / '.mim' / 'tools'


def _run(tool: str) -> None:
    """Run a script of tools/ as the main program."""
    sys.argv[0] = str(TOOLS / tool)
    runpy.run_path(sys.argv[0], run_name='__main__')


def train() -> None:
    """``tools/train.py``."""
    _run('train.py')


def test() -> None:
    """``tools/test.py``."""
    _run('test.py')


def fuse() -> None:
    """``tools/deploy_fuse.py``."""
    _run('deploy_fuse.py')


def wrap() -> None:
    """``tools/wrap_config.py``."""
    _run('wrap_config.py')


def convert() -> None:
    """``tools/convert_checkpoint.py``."""
    _run('convert_checkpoint.py')


def complexity() -> None:
    """``tools/analysis_tools/get_complexity.py``."""
    _run('analysis_tools/get_complexity.py')


def plot_history() -> None:
    """``tools/analysis_tools/plot_history.py``."""
    _run('analysis_tools/plot_history.py')


def plot_structure() -> None:
    """``tools/analysis_tools/plot_structure.py``."""
    _run('analysis_tools/plot_structure.py')
