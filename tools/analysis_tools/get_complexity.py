"""MACs and parameters of a config's model, per op and in all, augmented next to plain."""
import argparse

from mmengine.config import DictAction

from mmdyrep.analysis.complexity import as_json, complexity, print_table
from mmdyrep.cli import fail_readably, read_config
from mmdyrep.fileio import write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Count MACs and parameters, per op and in all')
    parser.add_argument('config', help='config file, with DyRepBackbone or without')
    parser.add_argument('--structure', metavar='FILE',
                        help='structure to count: its JSON file, or a checkpoint (default: that of the config)')
    parser.add_argument('--json', metavar='FILE', help='file to write the counts to')
    parser.add_argument('--shape', nargs='+', type=int, metavar='N',
                        help='H W or C H W of the input (default: input_shape of the backbone, else the size that '
                             'the training pipeline crops to, else 224 224)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='settings of the config to override, as key=value; lists as key="[a,b]"')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with fail_readably():
        cfg = read_config(args.config, args.cfg_options)
        found = complexity(cfg, args.structure, args.shape)
        if args.json:
            write_json(args.json, as_json(found))
    print_table(found)


if __name__ == '__main__':
    main()
