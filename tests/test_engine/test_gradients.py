"""Scores see the gradients that the optimizer sees: unscaled, clipped, once per accumulated step, not on overflow."""
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from mmengine.runner import Runner

from tests.resuming import dyrep_config
from tests.runs import needs_images
from tests.steps import Call, dyrep_hook, runner_of

SCALE = 1024.0


@OPTIM_WRAPPERS.register_module()
class ScalingWrapper(OptimWrapper):
    """What AmpOptimWrapper and GradScaler do on a GPU, on the CPU: scale, unscale, clip, leave out overflows.

    Args:
        overflow (Sequence[int]): Steps, from 0, whose gradients overflow.
        fused (bool): Leave dividing and skipping to the optimizer, as for fused ones.
    """

    def __init__(self, overflow: Any = (), fused: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.overflow, self.fused, self.number = overflow, fused, -1

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        (loss * SCALE).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        self.number += 1
        gradients = [parameter.grad for group in self.optimizer.param_groups for parameter in group['params']
                     if parameter.grad is not None]
        if self.number in self.overflow:
            for gradient in gradients:
                gradient.fill_(float('inf'))
        found = torch.tensor(float(not all(bool(gradient.isfinite().all()) for gradient in gradients)))
        divided = bool(self.clip_grad_kwargs) or not self.fused
        if divided:
            for gradient in gradients:
                gradient.div_(SCALE)
        if self.clip_grad_kwargs:
            self._clip_grad()
        if self.fused:
            self.optimizer.grad_scale = None if divided else torch.tensor(SCALE)
            self.optimizer.found_inf = found
            self.optimizer.step(**kwargs)
            del self.optimizer.grad_scale, self.optimizer.found_inf
        elif not found:
            self.optimizer.step(**kwargs)


@OPTIMIZERS.register_module()
class FusedLikeSGD(torch.optim.SGD):
    """Divides and skips by itself, as fused optimizers do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if getattr(self, 'found_inf', None) is not None and self.found_inf:
            return
        scale = getattr(self, 'grad_scale', None)
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad / (1 if scale is None else scale), alpha=-group['lr'])


def scores(folder: Path, wrapper: Dict[str, Any], metric: str = 'grad_norm', iteration: Any = None) -> Dict[str, Any]:
    """Sums and counts before the first update, and the weights then."""
    cfg = dyrep_config(images=256, hook=dict(metric=metric))
    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = []
    cfg.optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05))
    cfg.merge_from_dict(dict(optim_wrapper=wrapper))
    seen: Dict[str, Any] = {}

    def look(runner: Runner) -> None:
        seen.update(dyrep_hook(runner).saliency.state_dict())

    runner = runner_of(cfg, folder, Call(before=look, iteration=iteration))
    runner.train()
    assert dyrep_hook(runner).history.updates[0]['grown']
    return seen


def close(left: Dict[str, float], right: Dict[str, float]) -> bool:
    return list(left) == list(right) and all(abs(left[name] - right[name]) <= 1e-4 * abs(right[name]) for name in left)


FUSED = dict(type='ScalingWrapper', fused=True, optimizer=dict(type='FusedLikeSGD'))
CLIPPED = dict(clip_grad=dict(max_norm=0.01))


@needs_images
@pytest.mark.parametrize('clip', [{}, CLIPPED], ids=['free', 'clipped'])
def test_scores_are_free_of_the_loss_scale(tmp_path: Path, clip: Dict[str, Any]) -> None:
    expected = scores(tmp_path / 'plain', clip)
    assert set(expected['counts'].values()) == {8}
    for name, wrapper in dict(scaled=dict(type='ScalingWrapper'), fused=FUSED).items():
        found = scores(tmp_path / name, {**wrapper, **clip})
        assert close(found['sums'], expected['sums']) and found['counts'] == expected['counts'], name


@needs_images
@pytest.mark.parametrize('wrapper', [dict(type='ScalingWrapper'), FUSED], ids=['scaled', 'fused'])
def test_overflowing_steps_have_no_score(tmp_path: Path, wrapper: Dict[str, Any]) -> None:
    found = scores(tmp_path, dict(**wrapper, overflow=[0, 3, 4]))
    assert set(found['counts'].values()) == {5}
    assert all(torch.isfinite(torch.tensor(value)) for value in found['sums'].values())


@needs_images
def test_scores_are_of_clipped_gradients(tmp_path: Path) -> None:
    # eight steps whose gradients, of all parameters together, are clipped to a norm of 0.01
    free, clipped = scores(tmp_path / 'free', {}), scores(tmp_path / 'clipped', CLIPPED)
    assert sum(value ** 2 for value in clipped['sums'].values()) ** 0.5 < 8 * 0.01001
    assert sum(value ** 2 for value in free['sums'].values()) ** 0.5 > 8 * 0.01001


@needs_images
def test_accumulated_gradients_count_once_per_step(tmp_path: Path) -> None:
    found = scores(tmp_path, dict(accumulative_counts=2))
    assert set(found['counts'].values()) == {4}
