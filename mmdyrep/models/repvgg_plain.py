"""RepVGG without its extra branches: what DyRep grows them on."""
from typing import Any, Tuple

import torch
from mmengine.registry import MODELS
from mmpretrain.models.backbones.repvgg import RepVGG, RepVGGBlock
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights


class PlainBlock(RepVGGBlock):
    """RepVGGBlock with its 3x3 convolution and norm alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Map of shape (N, C_in, H, W) to (N, C_out, H', W')."""
        return self.act(self.branch_reparam(x) if self.deploy else self.branch_3x3(x))

    def reparameterize(self) -> Tuple[Tensor, Tensor]:
        """Kernel and bias of the convolution with its norm merged (Eq. 8)."""
        conv, norm = self.branch_3x3.conv, self.branch_3x3.norm
        with torch.no_grad():
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        return weight.detach(), bias.detach()


@MODELS.register_module()
class RepVGGPlain(RepVGG):
    """RepVGG with the 3x3 convolution and its norm alone in each block, a start for DyRep.

    Its keys are those of RepVGG's 3x3 branches; after ``switch_to_deploy`` those of ``RepVGG(deploy=True)``.
    The arguments are RepVGG's; archs with squeeze-and-excitation (D2se) are refused, because the deploy form
    of mmpretrain leaves that out.

    Args:
        arch (str or dict): Of RepVGG, as 'A0'.

    Raises:
        ValueError: If the arch has squeeze-and-excitation.

    Example:
        >>> from mmdyrep.models.repvgg_plain import RepVGGPlain
        >>> list(RepVGGPlain('A0').state_dict())[:2]
        ['stem.branch_3x3.conv.weight', 'stem.branch_3x3.norm.weight']
    """

    def __init__(self, arch: Any, **kwargs: Any) -> None:
        super().__init__(arch, **kwargs)
        if self.arch['se_cfg'] is not None:
            raise ValueError(f'RepVGGPlain takes no arch with squeeze-and-excitation, got {arch!r}')
        for module in list(self.modules()):
            if isinstance(module, RepVGGBlock):
                module.__class__ = PlainBlock
                if not module.deploy:
                    # RepVGGBlock's switch_to_deploy deletes these
                    module.branch_1x1 = module.branch_norm = None
