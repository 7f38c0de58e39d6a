"""VGG for small images, as in the paper's CIFAR experiments (Section 5.1)."""
from typing import Any, List, Optional, Sequence

from mmengine.registry import MODELS
from mmpretrain.models.backbones.vgg import VGG, make_vgg_layer
from torch import nn


@MODELS.register_module()
class VGG_CIFAR(VGG):
    """mmpretrain's VGG with a width factor, for images of 32x32: its convolutions without the classifier.

    With ``StackedLinearClsHead(num_classes=10, in_channels=512, mid_channels=[512])`` behind, VGG-16 has
    313.5 M MACs and 14.99 M parameters.

    Args:
        depth (int): 11, 13, 16 or 19. Defaults to 16.
        widen_factor (float): Times the usual channels, 64 to 512. Defaults to 1.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (Sequence[int]): Stages to return, each of shape (N, C, H, W). Defaults to the last.
        frozen_stages (int): Stages without training. Defaults to -1.
        conv_cfg (dict, optional): Defaults to nn.Conv2d.
        norm_cfg (dict): Defaults to dict(type='BN').
        act_cfg (dict): Defaults to dict(type='ReLU').
        norm_eval (bool): Keep the statistics of all norms. Defaults to False.
        init_cfg (list[dict]): Kaiming for convolutions, 1 for norms.

    Example:
        >>> import torch
        >>> from mmdyrep.models.vgg_cifar import VGG_CIFAR
        >>> [tuple(out.shape) for out in VGG_CIFAR(16, widen_factor=0.25)(torch.ones(2, 3, 32, 32))]
        [(2, 128, 1, 1)]
    """

    def __init__(self, depth: int = 16, widen_factor: float = 1.0, in_channels: int = 3,
                 out_indices: Sequence[int] = (4, ), frozen_stages: int = -1, conv_cfg: Optional[dict] = None,
                 norm_cfg: Optional[dict] = dict(type='BN'), act_cfg: dict = dict(type='ReLU'),
                 norm_eval: bool = False, init_cfg: Sequence[dict] = (
                     dict(type='Kaiming', layer=['Conv2d']),
                     dict(type='Constant', val=1., layer=['_BatchNorm']))) -> None:
        # not VGG's own: it would build the full width first
        super(VGG, self).__init__(list(init_cfg) if isinstance(init_cfg, tuple) else init_cfg)
        if depth not in self.arch_settings:
            raise ValueError(f'depth of VGG must be one of {sorted(self.arch_settings)}, got {depth}')
        self.stage_blocks = self.arch_settings[depth]
        self.num_classes = -1
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.module_name = 'features'
        self.range_sub_modules = []
        layers: List[Any] = []
        for stage, blocks in enumerate(self.stage_blocks):
            out_channels = max(1, round(min(64 * 2**stage, 512) * widen_factor))
            begin = len(layers)
            layers += make_vgg_layer(in_channels, out_channels, blocks, conv_cfg, norm_cfg, act_cfg)
            self.range_sub_modules.append([begin, len(layers)])
            in_channels = out_channels
        self.features = nn.Sequential(*layers)
