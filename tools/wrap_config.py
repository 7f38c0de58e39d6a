"""Write a config that trains another one with DyRep."""
import argparse

from mmdyrep.cli import fail_readably
from mmdyrep.wrapped_config import wrap_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Write a config that inherits from one of any OpenMMLab library and '
                                     'trains it with DyRep; it is checked before it is written')
    parser.add_argument('config', help='config file, or its name in a library, as mmdet::faster_rcnn/...py')
    parser.add_argument('out', help='the .py file to write')
    parser.add_argument('--space', nargs='+', default=['dyrep'],
                        help='operation space: dyrep, dbb, repvgg, or names of branches; default: dyrep')
    parser.add_argument('--interval', type=int, metavar='T',
                        help='epochs (or iterations, as the training counts) between updates; default: a 24th of all')
    parser.add_argument('--input-shape', nargs='+', type=int, metavar='N',
                        help='H W or C H W of the images, for a backbone that takes one size only')
    parser.add_argument('--recommended', action='store_true',
                        help="settings of this package's own studies (docs/results.md) instead of the paper's; the "
                        'interval is then a 15th of the training, and there are four updates')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with fail_readably():
        plan = wrap_config(args.config, args.out, args.space[0] if len(args.space) == 1 else args.space,
                           args.interval, args.input_shape, args.recommended)
    unit = 'epoch' if plan.by_epoch else 'iteration'
    print(f'written: {plan.out}, which inherits from {plan.source}; an update every '
          + (unit if plan.interval == 1 else f'{plan.interval} {unit}s'))


if __name__ == '__main__':
    main()
