"""Real backbones with unfriendly batch norms, and what their outputs differ by."""
from typing import Any, Dict, List, Tuple

import torch
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.registry import MODELS as PRETRAIN
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep import DyRepBackbone

RESNET18: Dict[str, Any] = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
# zero_init_residual makes mmpretrain's init_weights set gammas after a file has been loaded, plain or wrapped
SMALL: Dict[str, Any] = dict(type='mmpretrain.ResNet_CIFAR', depth=18, stem_channels=8, base_channels=8,
                             zero_init_residual=False)
HRNET: Dict[str, Any] = dict(type='mmpretrain.HRNet', extra=dict(
    stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(16,)),
    stage2=dict(num_modules=1, num_branches=2, block='BASIC', num_blocks=(1, 1), num_channels=(8, 16)),
    stage3=dict(num_modules=1, num_branches=3, block='BASIC', num_blocks=(1, 1, 1), num_channels=(8, 16, 32)),
    stage4=dict(num_modules=1, num_branches=4, block='BASIC', num_blocks=(1,) * 4, num_channels=(8, 16, 32, 64))))


def unfriendly(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give all batch norms statistics, gamma and beta at random, as training might."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            for tensor, low, high in ((norm.running_mean, -.3, .3), (norm.running_var, .5, 2),
                                      (norm.weight.data, .5, 1.5), (norm.bias.data, -.3, .3)):
                tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))
    return model


def plain(cfg: Dict[str, Any], seed: int = 0) -> nn.Module:
    """Plain backbone of a config with unfriendly norms, float64, eval mode."""
    torch.manual_seed(seed)
    model = unfriendly(MODELS.build(cfg), seed).double()
    model.eval()
    return model


def wrapped(cfg: Dict[str, Any], seed: int = 0, **kwargs: Any) -> DyRepBackbone:
    """The same, wrapped."""
    torch.manual_seed(seed)
    model = unfriendly(DyRepBackbone(cfg, **kwargs), seed).double()
    model.eval()
    return model


def classifier(**settings: Any) -> nn.Module:
    """mmpretrain's classifier of 10 classes around a wrapped `SMALL`, float64, in train mode as built."""
    cfg = dict(
        type='ImageClassifier', backbone=dict(dict(type='DyRepBackbone', backbone=SMALL), **settings),
        neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=10, in_channels=64))
    # a Runner of another test may have left its own scope
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return PRETRAIN.build(cfg).double()


def images(size: int = 32, channels: int = 3, batch: int = 2) -> Tensor:
    """Batch of random images, float64, shape (batch, channels, size, size)."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, channels, size, size, generator=generator, dtype=torch.float64)


def outputs(model: nn.Module, x: Tensor) -> Tuple[Tensor, ...]:
    """All feature maps of a backbone in eval mode."""
    model.eval()
    with torch.no_grad():
        out = model(x)
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def difference(these: Tuple[Tensor, ...], those: Tuple[Tensor, ...]) -> float:
    """Largest difference of two tuples of feature maps, over the largest value."""
    assert len(these) == len(those)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(these, those))


def block_norms(model: nn.Module, op: str) -> List[_BatchNorm]:
    """Batch norms of a block, nested ones included."""
    return [module for module in model.get_submodule(op).modules() if isinstance(module, _BatchNorm)]
