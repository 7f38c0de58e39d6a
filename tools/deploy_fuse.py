"""Fuse a checkpoint of DyRep to one that the plain network loads."""
import argparse

from mmengine.config import DictAction

from mmdyrep.cli import fail_readably, read_config
from mmdyrep.deploy import fuse_checkpoint


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Fuse a checkpoint to one that the plain network loads with '
                                     'strict=True; outputs are compared before it is written')
    parser.add_argument('config', help='config that the checkpoint was trained with')
    parser.add_argument('checkpoint', help='checkpoint file, augmented or plain')
    parser.add_argument('out', help='checkpoint to write')
    parser.add_argument('--out-config', help='also write the config of the plain network, a .py file')
    parser.add_argument('--backbone-only', action='store_true',
                        help='write the backbone alone, for init_cfg=dict(type="Pretrained", checkpoint=...)')
    parser.add_argument('--raw-weights', action='store_true',
                        help='of a training with EMA take the raw weights, not their average')
    parser.add_argument('--images', type=int, default=0, metavar='N',
                        help='compare on N images of the test set of the config; default: on random input')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='settings of the config to override, as key=value')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with fail_readably():
        cfg = read_config(args.config, args.cfg_options)
        report = fuse_checkpoint(cfg, args.checkpoint, args.out, out_config=args.out_config,
                                 backbone_only=args.backbone_only, raw_weights=args.raw_weights, images=args.images)
    ops = report.structure['ops']
    print(f'{len(ops)} blocks fused, {sum(len(branches) - 1 for branches in ops.values())} branches absorbed')
    print(f'{report.compared}: largest difference {report.difference:.2e} ({report.relative:.2e} of the largest value)')
    print(f'written: {args.out}' + (f', {args.out_config}' if args.out_config else ''))


if __name__ == '__main__':
    main()
