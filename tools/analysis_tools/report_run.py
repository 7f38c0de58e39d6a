"""Print what happened in a training run and in the tests of its checkpoints."""
import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmdyrep.analysis.run_report import report
from mmdyrep.cli import fail_readably


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Print a short report of a run that tools/quickstart.sh made')
    parser.add_argument('run', type=Path, help='its work dir')
    return parser.parse_args()


def main() -> None:
    run = parse_args().run
    with fail_readably():
        lines = report(run, run / 'test_augmented', run / 'test_plain', run / 'plain.pth')
    table = Table(show_header=False, show_lines=True)
    table.add_column(overflow='fold', style='bold')
    table.add_column(overflow='fold')
    for heading, text in [*lines, ('plain checkpoint', f'{run}/plain.pth, its config {run}/plain.py'),
                          ('pictures', f'{run}/history.png, {run}/structure.png'),
                          ('every change', f'{run}/dyrep/history.json')]:
        table.add_row(heading, text)
    Console().print(table)


if __name__ == '__main__':
    main()
