"""Settings of a benchmark, and the blocks that it measures: of the four shapes of ResNet-18."""
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.reparam import BRANCHES, Block

from . import reference

SECTIONS = ('blocks', 'training', 'evaluation', 'updates', 'history')
# channels and size of the maps
SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))


@dataclass(frozen=True)
class Options:
    """Settings of a benchmark.

    Args:
        only (tuple): Sections to run.
        quick (bool): Few rounds on small inputs: shows that it runs, not what things cost.
        device (str): 'cpu' or 'cuda'.
        amp (bool): Under autocast.
        channels_last (bool): Memory format of maps and weights.
        batch (int): Images of an iteration of a network.
        size (int): Height and width of these.
        block_batch (int): Images of a block.
        rounds (int): Calls of each thing; of blocks, ten times as many.
        networks (tuple): Out of `networks.NETWORKS`.
        rows (tuple): Parts of the names of networks to measure beside the plain one. Defaults to all.
        history (tuple, optional): Config and ``history.json`` of a run.
    """

    only: Tuple[str, ...] = SECTIONS
    quick: bool = False
    device: str = 'cpu'
    amp: bool = False
    channels_last: bool = False
    batch: int = 32
    size: int = 224
    block_batch: int = 8
    rounds: int = 3
    networks: Tuple[str, ...] = ('resnet18', )
    history: Optional[Tuple[str, str]] = None
    rows: Tuple[str, ...] = ()


def place(value, options: Options):
    """A module or a batch of maps on the device, in the memory format."""
    value = value.to(options.device)
    return value.to(memory_format=torch.channels_last) if options.channels_last else value


def our_block(channels: int, branches: Tuple[str, ...] = tuple(BRANCHES)) -> Block:
    """Block of stride 1 with these branches, in train mode."""
    block = Block(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d)
    with torch.no_grad():
        block.expand([name for name in branches if name != 'kxk'], 1.0)
    return block


def fixed(model: nn.Module) -> nn.Module:
    """Let the norms in blocks, and no others, work with running statistics."""
    for block in model.modules():
        if isinstance(block, Block):
            for module in block.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
    return model


def blocks(channels: int) -> Dict[str, nn.Module]:
    """Blocks to compare, by name; a plain convolution with its norm first."""
    return {
        'plain conv + BN': reference.plain(channels),
        'seven nn.Sequential': reference.seven(channels),
        'DBB, nn.Sequential': reference.dbb(channels),
        'block, batch statistics': our_block(channels),
        'block, fixed statistics': fixed(our_block(channels)),
    }
