"""Averaged copies of a model (mmengine's EMAHook) that follow its structure."""
from typing import Any, Callable, List, Sequence, cast

import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.models import DyRepBackbone
from mmdyrep.models.dropping import drop
from mmdyrep.models.finding import find_backbone
from mmdyrep.models.upkeep import leaves_out
from mmdyrep.reparam import Block, Statistics, blocks_of
from mmdyrep.reparam.kernels import Kernel, fuse_bn, of_conv
from mmdyrep.reparam.online import norms_in
from mmdyrep.reparam.statistics import restate, running
from mmdyrep.reparam.surgery import outer_blocks

from .forwards import runner_forward


def averaged_copies(runner: Runner) -> List['Averaged']:
    """Copies that the runner's EMAHooks keep; call it after ``before_run``."""
    return [Averaged(hook.ema_model, runner_forward(runner, hook.ema_model.module, exact=True))
            for hook in runner.hooks if isinstance(hook, EMAHook)]


class Averaged:
    """An averaged model whose function, in eval mode, stays what it was while the source's structure changes.

    It gets the same new modules as the source and absorbs their equivalent kernels itself. Its batch norms take the
    source's new statistics, compensated: EMAHook copies the source's buffers over them at each step.

    Args:
        ema_model (BaseAveragedModel): Of any averaging class.
        run (callable): Its forward on a batch as a data loader gives it.
    """

    def __init__(self, ema_model: BaseAveragedModel, run: Callable[[Any], Any]) -> None:
        self.ema_model, self.run = ema_model, run
        self.backbone: DyRepBackbone = find_backbone(ema_model.module)[1]

    @property
    def model(self) -> nn.Module:
        """The whole averaged model."""
        return self.ema_model.module

    @torch.no_grad()
    def expand(self, source: DyRepBackbone, name: str, branches: Sequence[str]) -> None:
        """Follow a convolution of the source that has just become a block (Eq. 6 with the averaged weight).

        Args:
            source (DyRepBackbone): With the block.
            name (str): Of the op.
            branches (Sequence[str]): Those that were added.
        """
        before = Kernel(*(part.clone() for part in of_conv(cast(nn.Conv2d, self.backbone.get_submodule(name)))))
        if leaves_out(self.backbone, name):
            before = fuse_bn(before, cast(_BatchNorm, self.backbone.norm_behind(name)))
        # a generator of its own: the random state of the training is not touched
        self.backbone.expand(name, list(branches), generator=torch.Generator())
        block, original = blocks_of(self.backbone)[name], blocks_of(source)[name]
        block.scale.copy_(original.scale)
        for branch in block.added:
            block.branches[branch].load_state_dict(original.branches[branch].state_dict())
        block.assign(before, _statistics(original.origin.bn, block.scale.device), rescale=False)

    @torch.no_grad()
    def remove(self, source: DyRepBackbone, name: str, branches: Sequence[str]) -> None:
        """Follow a block of the source that has just lost branches (Eq. 10 with the averaged weights)."""
        self.backbone.remove(name, list(branches))
        block, original = self.backbone.get_submodule(name), source.get_submodule(name)
        while isinstance(block, Block) and isinstance(original, Block):
            _take_statistics(block.origin.bn, original.origin.bn)
            block, original = block.origin.conv, original.origin.conv
        self._follow_behind(source, name)

    @torch.no_grad()
    def drop(self, source: DyRepBackbone, name: str, branches: Sequence[str]) -> None:
        """Follow a block of the source that branches have just been dropped from."""
        drop(self.backbone, name, branches)
        self._follow_behind(source, name)

    def _follow_behind(self, source: DyRepBackbone, name: str) -> None:
        behind = self.backbone.norm_behind(name)
        if behind is not None and not isinstance(self.backbone.get_submodule(name), Block):
            _take_statistics(behind, cast(_BatchNorm, source.norm_behind(name)))

    @torch.no_grad()
    def take_statistics(self, source: DyRepBackbone) -> None:
        """Follow blocks of the source whose norms have just been calibrated."""
        for name, block in outer_blocks(self.backbone).items():
            for norm, original in zip(norms_in(block), norms_in(source.get_submodule(name))):
                _take_statistics(norm, original)

    def match(self, source: DyRepBackbone) -> None:
        """Take the structure of the source, as before weights are loaded."""
        if self.backbone.structure != source.structure:
            self.backbone.load_structure(source.structure)
            self.relist()

    def relist(self) -> None:
        """Let the averaging class see the parameters that there are now."""
        ema_model = self.ema_model
        ema_model.avg_parameters = self.model.state_dict() if ema_model.update_buffers else dict(
            self.model.named_parameters())


def _statistics(bn: _BatchNorm, device: torch.device) -> Statistics:
    mean, var = running(bn)
    return Statistics(mean.to(device), var.to(device))


def _take_statistics(bn: _BatchNorm, source: _BatchNorm) -> None:
    restate(bn, _statistics(source, running(bn).mean.device))
