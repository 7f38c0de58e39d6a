"""Run an experiment of the paper, at its size on a cluster or small on this machine, and report what came.

Studies of this package are run the same way, at small size.
"""
import argparse
import signal
import sys
from pathlib import Path

from mmengine.config import DictAction

from mmdyrep.cli import fail_readably
from mmdyrep.experiments import EXPERIMENTS, STUDIES
from mmdyrep.experiments.command import Request, perform
from mmdyrep.experiments.page import update_page

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Run an experiment of the paper or a study of this package and write its report')
    parser.add_argument('name', nargs='?', help='table2, figure4, growth_vgg16, ...; --list shows all')
    parser.add_argument('--list', action='store_true', help='print the names, one a line')
    parser.add_argument('--small', action='store_true',
                        help='on Fashion-MNIST with small networks, here; else print the commands for a cluster')
    parser.add_argument('--seeds', type=int, default=1, metavar='N',
                        help='so many seeds of each run, from 1 on; from 4 on in studies that report')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='train these rows of the table alone, report all')
    parser.add_argument('--earlier', type=Path, metavar='REPORT.json',
                        help='do not train what this report tells of already, with the same settings')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='runs at a time')
    parser.add_argument('--resume', action='store_true', help='go on where an earlier call was ended')
    parser.add_argument('--report-only', action='store_true', help='write the report of what is done, train nothing')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'experiments', help='of runs and reports')
    parser.add_argument('--gpus', type=int, metavar='N', help='GPUs of a run, in the commands for a cluster (default: '
                        'those of the recipe)')
    parser.add_argument('--slurm', metavar='PARTITION', help='commands for Slurm instead of torchrun')
    parser.add_argument('--page', type=Path, metavar='FOLDER',
                        help='take the reports of small runs into this folder and fill them into its index.md and the '
                        'results.md beside it')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                        help='settings to change in every run, key=value')
    args = parser.parse_args()
    if args.name is None and not args.list and args.page is None:
        parser.error('give the name of an experiment, --list or --page')
    return args


def main() -> None:
    args = parse_args()
    if args.list:
        print('\n'.join(EXPERIMENTS), flush=True)
        # a name a line for programs; the heading is for people
        print('Studies of this package, with --small:', file=sys.stderr, flush=True)
        print('\n'.join(STUDIES))
        return
    if args.page is not None:
        with fail_readably():
            names = update_page(args.work_dir / 'small', args.page)
        print(f'{args.page / "index.md"} has {len(names)} of {len(EXPERIMENTS) + len(STUDIES)}: {", ".join(names)}')
        return
    # as with an interrupt: the runs end with the tool
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with fail_readably():
        failed = perform(Request(ROOT, args.name, args.small, args.seeds, args.jobs, args.resume, args.report_only,
                                 args.work_dir, args.gpus, args.slurm, args.cfg_options, args.rows, args.earlier))
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
