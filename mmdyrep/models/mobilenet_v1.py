"""MobileNet (Howard et al., 2017), which the libraries lack."""
from typing import Optional, Sequence, Tuple, Union

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdyrep.reparam.branches import MakeNorm

from .norms import norm_maker

# channels of each stage's separable convolutions; the first of a stage has stride 2, but for the first stage
STAGES = ((64,), (128, 128), (256, 256), (512,) * 6, (1024, 1024))


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int,
                 make_norm: MakeNorm) -> None:
        super().__init__()
        self.add_module('conv', nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2,
                                          groups=groups, bias=False))
        self.add_module('bn', make_norm(out_channels))
        self.add_module('act', nn.ReLU(inplace=True))


class Separable(nn.Sequential):
    """Depthwise 3x3 and pointwise convolution, each with norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, make_norm: MakeNorm) -> None:
        super().__init__()
        self.add_module('depthwise', ConvNormAct(in_channels, in_channels, 3, stride, in_channels, make_norm))
        self.add_module('pointwise', ConvNormAct(in_channels, out_channels, 1, 1, 1, make_norm))


@MODELS.register_module()
class MobileNetV1(BaseModule):
    """MobileNet V1: with a linear head of 1000 classes 0.569 G MACs at 224x224 and 4.23 M parameters.

    Args:
        widen_factor (float): Times the usual channels, 32 to 1024. Defaults to 1.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return, of strides 2, 4, 8, 16, 32. Defaults to the last, (4, ).
        frozen_stages (int): Stem and stages up to this one stay as they are. Defaults to -1, none.
        norm_cfg (dict, optional): Batch norm. Defaults to nn.BatchNorm2d.
        norm_eval (bool): Keep the statistics of all norms. Defaults to False.
        init_cfg (dict or list[dict]): Defaults to Kaiming for convolutions, 1 for norms.

    Example:
        >>> import torch
        >>> from mmdyrep.models import MobileNetV1
        >>> [tuple(out.shape) for out in MobileNetV1(out_indices=(2, 4))(torch.ones(2, 3, 64, 64))]
        [(2, 256, 8, 8), (2, 1024, 2, 2)]
    """

    def __init__(self, widen_factor: float = 1.0, in_channels: int = 3, out_indices: Sequence[int] = (4, ),
                 frozen_stages: int = -1, norm_cfg: Optional[dict] = None, norm_eval: bool = False,
                 init_cfg: Union[dict, Sequence[dict], None] = (
                     dict(type='Kaiming', layer=['Conv2d']),
                     dict(type='Constant', val=1., layer=['_BatchNorm']))) -> None:
        super().__init__(list(init_cfg) if isinstance(init_cfg, tuple) else init_cfg)
        if not set(out_indices) <= set(range(len(STAGES))):
            raise ValueError(f'out_indices of MobileNetV1 lie in 0 to {len(STAGES) - 1}, got {tuple(out_indices)}')
        if frozen_stages not in range(-1, len(STAGES)):
            raise ValueError(f'frozen_stages of MobileNetV1 lies in -1 to {len(STAGES) - 1}, got {frozen_stages}')
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        maker = norm_maker(norm_cfg)
        make_norm: MakeNorm = nn.BatchNorm2d if maker is None else maker(None)

        channels = max(1, round(32 * widen_factor))
        self.stem = ConvNormAct(in_channels, channels, 3, 2, 1, make_norm)
        self.stages = nn.ModuleList()
        for index, widths in enumerate(STAGES):
            stage = nn.Sequential()
            for place, width in enumerate(widths):
                out_channels = max(1, round(width * widen_factor))
                stage.append(Separable(channels, out_channels, 2 if index and not place else 1, make_norm))
                channels = out_channels
            self.stages.append(stage)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Image of shape (N, C, H, W) to the maps of `out_indices`, each of shape (N, C', H', W')."""
        x = self.stem(x)
        outs = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'MobileNetV1':
        """Train or evaluate; frozen stages and, with `norm_eval`, all norms stay in eval mode."""
        super().train(mode)
        if self.frozen_stages >= 0:
            for part in (self.stem, *self.stages[:self.frozen_stages + 1]):
                part.eval()
                part.requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self
