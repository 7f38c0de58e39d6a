"""Small searches with RepNASHook on real images."""
import copy
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmdyrep import RepNASHook
from mmdyrep.models.finding import unwrapped
from mmdyrep.reparam import blocks_of
from mmdyrep.reparam.gating import set_gates
from tests.runs import small_config


def repnas_config(by_epoch: bool = True, ema: Any = None, hook: Dict[str, Any] = {}, backbone: Dict[str, Any] = {},
                  **changes: Any) -> Config:
    """`small_config` with a search: warm-up in the first of 4 epochs (8 of 32 iterations), search in the second.

    Args:
        by_epoch (bool): Epoch or iteration loop.
        ema (dict, optional): Settings of an EMAHook.
        hook (dict): Settings of RepNASHook.
        backbone (dict): Settings of DyRepBackbone.
        changes: As of ``small_config``.
    """
    cfg = small_config(by_epoch=by_epoch, **changes)
    settings = dict(type='RepNASHook', by_epoch=by_epoch, warmup=1 if by_epoch else 8, search=1 if by_epoch else 8,
                    alpha=dict(lr=0.2))
    cfg.default_hooks.repnas = {**settings, **hook}
    cfg.model.backbone = dict(type='DyRepBackbone', backbone=cfg.model.backbone,
                              **{**dict(static=True, keep_norm=False), **backbone})
    if ema is not None:
        cfg.custom_hooks = [dict(type='EMAHook', **ema), *cfg.get('custom_hooks', [])]
    return cfg


def repnas_hook(runner: Runner) -> RepNASHook:
    """The RepNASHook of a runner."""
    return next(hook for hook in runner.hooks if isinstance(hook, RepNASHook))


@HOOKS.register_module()
class SearchSpy(Hook):
    """Notes each iteration of a search, with a gradient of alpha of its own.

    That is autograd's, through w = mask + sigmoid(rank) - stop_gradient(sigmoid(rank)) on the output of every branch,
    on a copy of the model in float64 and this rank's batch.

    Args:
        folder (str, optional): For ``rank_N.pth`` at the end of the training.
        reference (bool): Compute that gradient.
    """

    priority = 'LOWEST'

    def __init__(self, folder: Optional[str] = None, reference: bool = True) -> None:
        self.folder, self.reference = folder, reference
        self.seen: List[Dict[str, Any]] = []
        self.steps: Dict[int, torch.Tensor] = {}  # gradient that Adam was given, by iteration
        self.wrappers: List[Any] = []

    def before_train(self, runner: Runner) -> None:
        search = repnas_hook(runner).architecture
        if search is None:
            return
        step = search.optimizer.step

        def watched() -> None:
            self.steps[runner.iter] = search.alpha.grad.clone()
            step()

        search.optimizer.step = watched

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        hook = repnas_hook(runner)
        self.wrappers.append(getattr(runner.model, 'find_unused_parameters', None))
        if hook.architecture is None:
            self.seen.append(dict(iter=runner.iter, searched=0))
            return
        model, draw = unwrapped(runner.model), hook._draw
        gates = {name: block.gate for name, block in blocks_of(model.backbone).items()}
        self.seen.append(dict(
            iter=runner.iter, searched=len(hook.architecture.keys), phase=hook.phase(hook._now(runner)),
            mask=draw.mask.clone(), ranks=draw.ranks.clone(), alpha=hook.architecture.alpha.detach().clone(),
            open=[key for key in hook.architecture.keys if key[1] not in gates[key[0]].training],
            evaluated=[key for key in hook.architecture.keys if key[1] not in gates[key[0]].evaluation],
            local=self._local(model, hook.architecture.keys, draw, data_batch) if (
                self.reference and hook._learning) else None))

    @staticmethod
    def _local(model: nn.Module, keys: Any, draw: Any, batch: Any) -> torch.Tensor:
        model = copy.deepcopy(model).double().train()
        set_gates(blocks_of(model.backbone), {})
        ranks = draw.ranks.clone().requires_grad_()
        sigmoid = torch.sigmoid(ranks)
        for (name, branch), weight in zip(keys, draw.mask.double() + sigmoid - sigmoid.detach()):
            model.backbone.get_submodule(name).branches[branch].register_forward_hook(
                lambda module, inputs, output, weight=weight: output * weight)
        with torch.random.fork_rng(devices=[]):
            data = model.data_preprocessor(copy.deepcopy(batch), True)
            loss = model(data['inputs'].double(), data['data_samples'], mode='loss')['loss']
        return torch.autograd.grad(loss, ranks)[0] * draw.mask

    def after_train(self, runner: Runner) -> None:
        if self.folder is not None:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            torch.save(dict(seen=self.seen, steps=self.steps, wrappers=self.wrappers),
                       Path(self.folder) / f'rank_{runner.rank}.pth')
