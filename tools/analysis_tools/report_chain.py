"""Print the table of tools/run_small_chain.sh, and write it as markdown, JSON and a picture."""
import argparse
from pathlib import Path

from mmdyrep.analysis.chain_report import check_fusing, markdown, read_chain, worst_fusing, write_report
from mmdyrep.cli import fail_readably


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Table of the runs of tools/run_small_chain.sh')
    parser.add_argument('chain', type=Path, help='its work dir')
    return parser.parse_args()


def main() -> None:
    folder = parse_args().chain
    with fail_readably():
        chain = read_chain(folder)
        check_fusing(chain)
        paths = write_report(chain, folder)
    print(markdown(chain))
    print(f'fusing moved no metric by more than {worst_fusing(chain):.2g} percent points')
    print('written: ' + ', '.join(map(str, paths)))


if __name__ == '__main__':
    main()
