"""What is measured: blocks of the four shapes of ResNet-18, whole networks in training and in evaluation."""
import random
from dataclasses import dataclass
from typing import Callable, Dict, List, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.models import DyRepBackbone
from mmdyrep.reparam import BRANCHES, Block

from . import reference
from .measuring import bytes_of

SECTIONS = ('blocks', 'training', 'evaluation')
# channels and size of the maps
SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
NETWORKS = ('resnet18', 'resnet50')


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
        networks (tuple): Of torchvision.
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


def _network(name: str) -> nn.Module:
    import torchvision
    if name not in NETWORKS:
        raise ValueError(f'unknown network {name!r}; there are {list(NETWORKS)}')
    return getattr(torchvision.models, name)(num_classes=1000)


def grown(name: str, number: int = 4) -> DyRepBackbone:
    """A network with ``number`` random blocks, as a DyRep run has halfway."""
    net = DyRepBackbone(_network(name), exclude=('conv1', ))
    for op in random.Random(0).sample(net.candidates(), number):
        net.expand(op)
    return net


def networks(name: str) -> Dict[str, Callable[[], nn.Module]]:
    """Makers of networks to compare, by name; the plain one first."""
    def static(space: str) -> DyRepBackbone:
        return DyRepBackbone(_network(name), space=space, static=True, exclude=('conv1', ))

    return {
        'plain': lambda: _network(name),
        'static DBB, batch statistics': lambda: static('dbb'),
        'static seven, batch statistics': lambda: static('dyrep'),
        'static DBB, fixed statistics': lambda: fixed(static('dbb')),
        'static seven, fixed statistics': lambda: fixed(static('dyrep')),
        'four blocks of seven, batch statistics': lambda: grown(name),
        'four blocks of seven, fixed statistics': lambda: fixed(grown(name)),
    }


class Iteration:
    """Forward, backward and an SGD step of a network on a batch of noise.

    Args:
        model (nn.Module): In the modes that it shall train in.
        options (Options): Batch, size, device, precision.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.model, self.options = place(model, options), options
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        generator = torch.Generator().manual_seed(0)
        self.x: Tensor = place(torch.randn(options.batch, 3, options.size, options.size, generator=generator), options)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.options.device, enabled=self.options.amp):
            loss = self.model(self.x).float().square().mean()
        loss.backward()
        self.optimizer.step()

    @property
    def standing(self) -> int:
        """Bytes of what is there between two iterations, gradients included."""
        tensors: List[Tensor] = [self.x, *self.model.parameters(), *self.model.buffers()]
        tensors += [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        tensors += [value for state in self.optimizer.state.values() for value in state.values()
                    if isinstance(value, Tensor)]
        return bytes_of(tensors)


class Evaluation:
    """Forward of a network in eval mode without gradients."""

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.model, self.options = place(model, options).eval(), options
        generator = torch.Generator().manual_seed(0)
        self.x: Tensor = place(torch.randn(options.batch, 3, options.size, options.size, generator=generator), options)

    @torch.no_grad()
    def __call__(self) -> None:
        with torch.autocast(self.options.device, enabled=self.options.amp):
            self.model(self.x)
