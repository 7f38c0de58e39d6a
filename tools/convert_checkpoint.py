"""Convert a checkpoint of DyRep's authors, DBB or RepVGG to one of a DyRepBackbone."""
import argparse

from mmengine.config import DictAction

from mmdyrep.cli import fail_readably, read_config
from mmdyrep.convert import convert_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Convert a checkpoint of the code of DyRep\'s authors, of DBB or of '
                                     'RepVGG; each block is compared before it is written')
    parser.add_argument('config', help='config with a DyRepBackbone of the same network')
    parser.add_argument('checkpoint', help='checkpoint of the other code, augmented or fused')
    parser.add_argument('out', help='checkpoint to write')
    parser.add_argument('--key', help='entry of the file that holds the weights, as ema_model; default: state_dict, '
                        'model, or the file itself')
    parser.add_argument('--rename', action='append', default=[], metavar='PATTERN=NEW',
                        help='for networks that are not known: a regular expression for the beginning of names, and '
                        'what replaces it; can be given several times, the first that matches counts')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='settings of the config to override, as key=value')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with fail_readably():
        cfg = read_config(args.config, args.cfg_options)
        report = convert_checkpoint(cfg, args.checkpoint, args.out, key=args.key, rename=args.rename)
    counts = ', '.join(f'{count} {layout}' for layout, count in report.layouts.items())
    print(f'blocks: {counts or "none, a plain network"}' + (
        f'; {report.absorbed} branches absorbed by the original' if report.absorbed else ''))
    print(f'outputs of the blocks: largest difference {report.difference:.2e} of the largest value')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
