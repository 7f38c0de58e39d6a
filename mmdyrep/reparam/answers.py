"""A block answers for what code asks of a convolution, by whose name it goes."""
from typing import Any, Optional

from torch import Tensor, nn


def _of_original(name: str) -> property:
    def get(self: nn.Module) -> Any:
        return getattr(self.original_conv(), name)

    def put(self: nn.Module, value: Any) -> None:
        raise AttributeError(_refusal(name))

    return property(get, put, doc=f'``{name}`` of the convolution that the block stands for.')


def _refusal(name: str) -> str:
    return (f'{name} of a block can not be set: it follows from its branches. Set it before the op is expanded or '
            'after its branches are removed; numbers of a plain network come in by load_state_dict')


class AsConv(nn.Module):
    """Base of blocks: read-only attributes of the convolution that the block is equivalent to in eval mode."""

    in_channels = _of_original('in_channels')
    out_channels = _of_original('out_channels')
    kernel_size = _of_original('kernel_size')
    stride = _of_original('stride')
    padding = _of_original('padding')
    dilation = _of_original('dilation')
    groups = _of_original('groups')
    padding_mode = _of_original('padding_mode')
    output_padding = _of_original('output_padding')
    transposed = _of_original('transposed')

    @property
    def weight(self) -> Tensor:
        """Equivalent kernel, shape (C_out, C_in / groups, K_h, K_w), with gradients to all branches.

        It is computed anew each time and is no parameter: what is written into it is lost.
        """
        return self.merged().weight.to(self.original_conv().weight.dtype)

    @weight.setter
    def weight(self, value: Any) -> None:
        raise AttributeError(_refusal('weight'))

    @property
    def bias(self) -> Optional[Tensor]:
        """Equivalent bias, shape (C_out,), as :attr:`weight`; None where the convolution had none."""
        return self.merged().bias.to(self.original_conv().weight.dtype) if self.has_bias else None

    @bias.setter
    def bias(self, value: Any) -> None:
        raise AttributeError(_refusal('bias'))

    def register_parameter(self, name: str, param: Optional[nn.Parameter]) -> None:
        """As any module, but for the names that it answers itself.

        Raises:
            AttributeError: If a weight or a bias is set.
        """
        if name in ('weight', 'bias'):
            raise AttributeError(_refusal(name))
        super().register_parameter(name, param)
