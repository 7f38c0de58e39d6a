"""Picture of training runs: convergence, accuracy against cost, structure over time (Figures 1 and 5)."""
import argparse

from mmdyrep.analysis import drawing
from mmdyrep.analysis.history_plot import plot_history
from mmdyrep.analysis.run_files import all_costs, pick_metric, read_runs
from mmdyrep.cli import fail_readably


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw training runs, with DyRep and without, side by side')
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='work dirs of the runs')
    parser.add_argument('out', metavar='OUT', help='picture to write, .png, .pdf or .svg')
    parser.add_argument('--metric', help='validation metric, as accuracy/top1 (default: the usual one of the task)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with fail_readably():
        drawing.picture_format(args.out)
        runs = read_runs(args.work_dirs)
        metric = pick_metric(runs, args.metric)
        costs, unknown = all_costs(runs)
        drawing.save(plot_history(runs, metric, costs), args.out)
    print(f'written: {args.out}')
    for label, reason in unknown.items():
        print(f'{label}: cost not known, left out of the third panel: {reason}')


if __name__ == '__main__':
    main()
