"""A small model of the user's own, striped images, and a Runner around them: for trainings as people write them."""
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmdyrep import DyRepBackbone, DyRepHook, RandomStateHook
from tests.steps import dyrep_hook


def body(channels: int = 4) -> nn.Sequential:
    """Three convolutions with norms; ops '0', '3' and '6'."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())


class Model(BaseModel):
    """A classifier of two kinds of stripes.

    Args:
        net (nn.Module, optional): The backbone before it is wrapped. Defaults to `body`.
        settings: Of DyRepBackbone.
    """

    def __init__(self, net: Optional[nn.Module] = None, **settings: Any) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.backbone = DyRepBackbone(net or body(), **{'input_shape': (8, 8), **settings})
            self.head = nn.Linear(4, 2)

    def logits(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs).mean((2, 3)))

    def forward(self, inputs: Any, kind: Any = None, mode: str = 'tensor') -> Any:
        scores = self.logits(torch.stack(list(inputs)))
        return dict(loss=nn.functional.cross_entropy(scores, torch.as_tensor(kind))) if mode == 'loss' else scores


class Stripes(Dataset):
    """Images of 8x8, striped or not, the same at each reading."""

    def __init__(self, number: int = 24) -> None:
        generator = torch.Generator().manual_seed(1)
        self.kinds = torch.randint(2, (number, ), generator=generator).tolist()
        self.images = torch.randn(number, 3, 8, 8, generator=generator)
        for image, kind in zip(self.images, self.kinds):
            image[:, ::2] += 2 * kind

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        return dict(inputs=self.images[index], kind=self.kinds[index])


def loader(number: int = 24, batch: int = 8) -> DataLoader:
    return DataLoader(Stripes(number), batch_size=batch)


def runner_for(model: nn.Module, folder: Path, hook: Optional[Dict[str, Any]] = {}, hooks: Sequence[Hook] = (),
               epochs: int = 3, iters: Optional[int] = None, optim_wrapper: Any = None, data: Any = None,
               cfg: Any = None, **others: Any) -> Runner:
    """Three iterations of 8 images an epoch, an update after each.

    Args:
        model (nn.Module): To train.
        folder (Path): Work dir.
        hook (dict, optional): Settings of DyRepHook; None: without it.
        hooks (Sequence[Hook]): Others.
        epochs (int): Of an epoch loop.
        iters (int, optional): Of an iteration loop instead, with an update every 3.
        optim_wrapper (Any): Config or object. Defaults to SGD with momentum.
        data (Any): Loader, or what a loop of its own takes.
        cfg (dict, optional): ``train_cfg`` instead.
        others: Of the runner.
    """
    by_epoch = iters is None
    train_cfg = cfg or (dict(by_epoch=True, max_epochs=epochs) if by_epoch else dict(by_epoch=False, max_iters=iters))
    optim_wrapper = optim_wrapper or dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
    mine = [] if hook is None else [DyRepHook(**{
        'interval': 1 if by_epoch else 3, 'by_epoch': by_epoch, 'calibration_batches': 2, 'metric': 'snip', **hook})]
    whole = dict(optim_wrapper=optim_wrapper) if isinstance(optim_wrapper, dict) else None
    return Runner(
        model, str(folder), train_dataloader=loader() if data is None else data, train_cfg=train_cfg,
        optim_wrapper=optim_wrapper,
        # mmengine's logger asks for the length of every loader
        default_hooks={'logger': None, 'checkpoint': None, **others.pop('default_hooks', {})},
        custom_hooks=[RandomStateHook(), *mine, *hooks], cfg=whole, randomness=dict(seed=0, deterministic=True),
        experiment_name=f'{folder.parent.name}-{folder.name}', **others)


def grown(runner: Runner) -> List[str]:
    """Ops that have grown, update by update."""
    return [item['op'] for update in dyrep_hook(runner).history.updates for item in update['grown']]
