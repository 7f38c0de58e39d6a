"""Backbones that take something else than one image are surveyed with the first images of the training."""
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook
from torch import Tensor, nn

from mmdyrep.reparam.probe import tensors_in
from tests.runs import differences
from tests.strange import Model, body, grown, runner_for


class Two(nn.Module):
    """Compares two images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.joint, self.norm = nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.norm(self.joint(torch.cat([self.body(first), self.body(second)], 1)))


class Named(Two):
    """Takes them by name, out of a dict and a list; calls its convolution by keyword."""

    def forward(self, images: Any, *, flipped: Tensor) -> Tensor:
        pair = torch.cat([self.body(images['left'][0]), self.body(flipped)], 1)
        return self.norm(self.joint(input=pair))


class OnTwo(Model):

    def logits(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs, inputs.flip(-1)).mean((2, 3)))


class OnNamed(Model):

    def logits(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(dict(left=[inputs]), flipped=inputs.flip(-1)).mean((2, 3)))


class ByKeyword(Model):

    def logits(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(input=inputs).mean((2, 3)))


MODELS = {'two images': lambda: OnTwo(Two(), input_shape=None), 'a dict and keywords': lambda: OnNamed(Named()),
          'one image by keyword': ByKeyword}
OPS = {'one image by keyword': ['0', '3', '6']}


def made(kind: str) -> Model:
    """A model with the same weights each time."""
    torch.manual_seed(0)
    return MODELS[kind]()


@pytest.mark.parametrize('kind', MODELS)
def test_they_train_as_others_do(tmp_path: Path, kind: str, caplog: Any) -> None:
    runner = runner_for(made(kind), tmp_path, hooks=[EMAHook()], hook=dict(max_macs_ratio=9.0))
    runner.train()
    backbone = runner.model.backbone
    wanted = OPS.get(kind, ['joint'])  # what is called for each of the two images can't be expanded
    assert grown(runner)[0] in wanted and set(wanted) <= set(backbone.survey.ops)
    history = runner.hooks
    update = next(hook for hook in history if type(hook).__name__ == 'DyRepHook').history.updates[0]
    assert update['drift'] < 1e-5 and update['macs']['backbone'] > 0 and update['drift_ema'] < 1e-5
    images = torch.randn(4, 3, 8, 8)
    runner.model.eval()
    before = runner.model.logits(images)
    runner.model.backbone = backbone.to_plain()
    assert torch.allclose(runner.model.logits(images), before, atol=1e-5)


def test_they_are_resumed_exactly(tmp_path: Path) -> None:
    straight = runner_for(made('two images'), tmp_path / 'straight', epochs=4)
    straight.train()
    saving = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    runner_for(made('two images'), tmp_path / 'half', epochs=2, default_hooks=saving).train()
    resumed = runner_for(made('two images'), tmp_path / 'half', epochs=4, default_hooks=saving, resume=True)
    resumed.train()
    assert resumed.iter == straight.iter == 12 and grown(resumed) == grown(straight)
    assert differences(dict(resumed.model.state_dict()), dict(straight.model.state_dict())) == []


def test_looking_at_the_first_batch_changes_no_later_one(tmp_path: Path) -> None:
    """The run is that of a network which was shown its inputs by hand."""
    ends = []
    for name in ('first batch', 'by hand'):
        model = made('two images')
        if name == 'by hand':
            model.backbone.probe_with(*torch.ones(2, 2, 3, 8, 8))
        runner = runner_for(model, tmp_path / name)
        runner.train()
        ends.append(dict(runner.model.state_dict()))
    assert differences(*ends) == [] and len(list(tensors_in(ends[0]))) > 30
