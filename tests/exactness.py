"""How far Rep and Dep move a network in training: ``python -m tests.exactness`` prints the table of docs/exactness.md.

Networks of mmpretrain on Fashion-MNIST, trained shortly. What is compared are logits before and after one change, on
128 images that no calibration has seen: in train mode, where batch norms use the statistics of these images, and in
eval mode.
"""
import copy
import logging
import statistics
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmdyrep import DyRepBackbone
from mmdyrep.dynamics import Calibration, importance
from tests.images import fashion

RESNET: Dict[str, Any] = dict(type='ResNet_CIFAR', depth=18, in_channels=1, stem_channels=8, base_channels=8)
VGG: Dict[str, Any] = dict(type='VGG_CIFAR', depth=16, widen_factor=0.125, in_channels=1)
NETWORKS = {'ResNet_CIFAR-18, 8 channels': (RESNET, 64), 'VGG_CIFAR-16, 1/8 width': (VGG, 64)}
BATCH = 64
HELD_OUT = 8000


class Network(nn.Module):
    """A wrapped backbone, global average and a linear layer: images (N, 1, 28, 28) to logits (N, 10)."""

    def __init__(self, cfg: Dict[str, Any], channels: int, **settings: Any) -> None:
        super().__init__()
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            self.backbone = DyRepBackbone(cfg, **settings)
        self.backbone.init_weights()
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1].mean((2, 3)))


def images_for(size: int, start: int, number: int) -> Tuple[Tensor, Tensor]:
    """Images padded to a size, (number, 1, size, size), and their classes."""
    x, labels = fashion(number, start)
    return F.pad(x, [(size - 28) // 2] * 4, value=float(x.min())), labels


class Trained(NamedTuple):
    """A network after a short training, its optimizer and the image size."""

    model: Network
    size: int


def steps(model: nn.Module, size: int, number: int, lr: float = 0.05) -> None:
    """SGD on so many batches, from the first images on."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    model.train()
    for step in range(number):
        x, labels = images_for(size, step * BATCH % HELD_OUT, BATCH)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()


def short_training(cfg: Dict[str, Any], channels: int, number: int = 100, **settings: Any) -> Trained:
    """A network after ``number`` steps of batch 64."""
    torch.manual_seed(0)
    size = 32 if cfg['type'] == 'VGG_CIFAR' else 28
    model = Network(cfg, channels, **settings)
    steps(model, size, number)
    return Trained(model, size)


def calibration(model: Network, size: int, batches: int = 20) -> Calibration:
    """On the first batches of the training, in train mode."""
    model.train()
    return Calibration(model, lambda x: model(x), [images_for(size, i * BATCH, BATCH)[0] for i in range(batches)])


@torch.no_grad()
def logits(model: nn.Module, size: int, training: bool) -> Tensor:
    """On 128 images that were in no batch, (128, 10); statistics stay as they are."""
    model = copy.deepcopy(model).train(training)
    return model(images_for(size, HELD_OUT, 2 * BATCH)[0])


def moved(model: Network, size: int, change: Callable[[Network], Any]) -> Tuple[float, float]:
    """Relative L2 distance of the logits in train and in eval mode that a change of a copy makes."""
    after = copy.deepcopy(model)
    change(after)
    distances = []
    for training in (True, False):
        old, new = logits(model, size, training), logits(after, size, training)
        distances.append(float((new - old).norm() / old.norm()))
    return distances[0], distances[1]


def rep(op: str, size: int, batches: int) -> Callable[[Network], Any]:
    """Expansion of an op, calibrated on so many batches; 0: uncalibrated."""
    def change(model: Network) -> None:
        measure = calibration(model, size, batches) if batches else None
        model.backbone.expand(op, generator=torch.Generator().manual_seed(1), measure=measure)
    return change


def dep(op: str, size: int, batches: int) -> Callable[[Network], Any]:
    """Removal of the branches below the mean importance."""
    def change(model: Network) -> None:
        values = importance(model.backbone.get_submodule(op))
        low = [name for name, value in values.items() if value < statistics.mean(values.values())]
        model.backbone.remove(op, low, measure=calibration(model, size, batches) if batches else None)
    return change


def reps(trained: Trained, batches: int, ops: Optional[List[str]] = None) -> Iterator[Tuple[float, float]]:
    """Distances by Rep of each op of a network."""
    for op in ops or trained.model.backbone.candidates():
        yield moved(trained.model, trained.size, rep(op, trained.size, batches))


def deps(trained: Trained, batches: int, ops: Optional[List[str]] = None, number: int = 20
         ) -> Iterator[Tuple[float, float]]:
    """Distances by Dep of each op, ``number`` training steps of a small rate after its Rep."""
    for op in ops or trained.model.backbone.candidates():
        model = copy.deepcopy(trained.model)
        rep(op, trained.size, batches or 20)(model)
        steps(model, trained.size, number, lr=0.01)
        yield moved(model, trained.size, dep(op, trained.size, batches))


def frozen(trained: Trained) -> Trained:
    """The network with the statistics of all norms of its backbone fixed."""
    model = copy.deepcopy(trained.model)
    model.backbone.norm_eval = True
    model.train()
    return Trained(model, trained.size)


def online(trained: Trained) -> Trained:
    """The network with the statistics of blocks fixed between updates, those of its norms taken from each batch."""
    model = copy.deepcopy(trained.model)
    model.backbone._dyrep.online = True
    model.train()
    return Trained(model, trained.size)


def row(name: str, what: str, distances: Iterator[Tuple[float, float]]) -> None:
    train, evaluate = zip(*distances)
    print(f'| {name} | {what} | {100 * statistics.median(train):.2g} % | {100 * max(train):.2g} % | '
          f'{max(evaluate):.1e} |', flush=True)


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    print('| network | change | train mode, median | train mode, largest | eval mode, largest |')
    print('|---|---|---|---|---|')
    for name, (cfg, channels) in NETWORKS.items():
        trained = short_training(cfg, channels)
        some = trained.model.backbone.candidates()[::3]
        for what, batches in (('calibrated', 20), ('uncalibrated', 0)):
            row(name, f'Rep, {what}', reps(trained, batches))
        for what, batches in (('calibrated', 20), ('uncalibrated', 0)):
            row(name, f'Dep, {what}', deps(trained, batches, some))
        row(name, 'Rep, norm_eval, calibrated', reps(frozen(trained), 20))
        row(name, 'Dep, norm_eval, calibrated', deps(frozen(trained), 20, some))


if __name__ == '__main__':
    main()
