"""Picture of a structure: one block with its branches (Figure 6 of the paper), or the whole network."""
import argparse

from mmdyrep.analysis import drawing
from mmdyrep.analysis.block_plot import plot_block
from mmdyrep.analysis.network_plot import plot_network
from mmdyrep.analysis.structure_file import read_structure
from mmdyrep.cli import fail_readably


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw the structure of a network, or one of its blocks')
    parser.add_argument('file', help='checkpoint, or JSON file of a structure (which knows no importances)')
    parser.add_argument('out', help='picture to write, .png, .pdf or .svg')
    parser.add_argument('--op', help='draw the block of this op, as conv1 (default: the whole network)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with fail_readably():
        drawing.picture_format(args.out)
        structure = read_structure(args.file)
        figure = plot_network(structure) if args.op is None else plot_block(structure, args.op)
        drawing.save(figure, args.out)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
