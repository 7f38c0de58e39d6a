"""What blocks cost, against plain networks and blocks written plainly: time and memory side by side."""
import argparse
import os
from pathlib import Path

# PyTorch's profiler, which counts memory, would report its stages
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

import torch  # noqa: E402

from mmdyrep import benchmark  # noqa: E402
from mmdyrep.cli import fail_readably  # noqa: E402
from mmdyrep.fileio import atomic_path, write_json  # noqa: E402


def parse_args() -> argparse.Namespace:
    default = benchmark.Options()
    parser = argparse.ArgumentParser(description='Measure blocks, iterations of training and evaluation, in turn with '
                                     'the plain network; best on a machine that does nothing else')
    parser.add_argument('--only', nargs='+', choices=benchmark.SECTIONS, default=benchmark.SECTIONS,
                        help='sections to run; default: all')
    parser.add_argument('--quick', action='store_true', help='one round on small inputs, to see that it runs')
    parser.add_argument('--networks', nargs='+', default=default.networks, choices=benchmark.NETWORKS,
                        help=f'of {", ".join(benchmark.NETWORKS)}; default: resnet18')
    parser.add_argument('--rows', nargs='+', default=(), metavar='PART',
                        help='networks whose names hold one of these, beside the plain one; default: all')
    parser.add_argument('--history', nargs=2, metavar=('CONFIG', 'HISTORY_JSON'),
                        help='a run, whose training is timed as a whole: its config, WORK_DIR/dyrep/history.json')
    parser.add_argument('--batch', type=int, default=default.batch, help='images of an iteration; default: %(default)s')
    parser.add_argument('--size', type=int, default=default.size, help='their height and width; default: %(default)s')
    parser.add_argument('--block-batch', type=int, default=default.block_batch,
                        help='images of a block; default: %(default)s')
    parser.add_argument('--rounds', type=int, default=default.rounds,
                        help='calls of each network, and a tenth of those of each block; default: %(default)s')
    parser.add_argument('--device', default=default.device, choices=('cpu', 'cuda'))
    parser.add_argument('--amp', action='store_true', help='under autocast')
    parser.add_argument('--channels-last', action='store_true', help='memory format of weights and maps')
    parser.add_argument('--threads', type=int, help="default: PyTorch's")
    parser.add_argument('--json', metavar='FILE', help='file to write the numbers to')
    parser.add_argument('--markdown', metavar='FILE', help='page to write the tables to, with the plot in it')
    parser.add_argument('--plot', metavar='FILE', help='image file for a bar chart of the ratios')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with fail_readably():
        result = benchmark.run(benchmark.Options(
            tuple(args.only), args.quick, args.device, args.amp, args.channels_last, args.batch, args.size,
            args.block_batch, args.rounds, tuple(args.networks), args.history and tuple(args.history),
            tuple(args.rows)))
        if args.json:
            write_json(args.json, result)
        if args.plot:
            benchmark.plot(result, Path(args.plot))
        if args.markdown:
            page = Path(args.markdown)
            picture = args.plot and os.path.relpath(args.plot, page.parent)
            with atomic_path(page) as temporary:
                temporary.write_text(benchmark.markdown(result, f'Benchmark: {page.stem}', picture), encoding='utf-8')
    benchmark.print_report(result)


if __name__ == '__main__':
    main()
