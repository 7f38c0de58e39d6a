"""A block answers for what code asks of a convolution, by whose name it goes, and reads files as one."""
import copy
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import torch
from torch import Tensor, nn

from .kernels import Kernel, of_conv
from .statistics import running

if TYPE_CHECKING:
    from .branches import Branch
    from .statistics import Statistics


def _of_original(name: str) -> property:
    def get(self: 'AsConv') -> Any:
        return getattr(self.original_conv(), name)

    def put(self: 'AsConv', value: Any) -> None:
        raise AttributeError(_refusal(name))

    return property(get, put, doc=f'``{name}`` of the convolution that the block stands for.')


def _refusal(name: str) -> str:
    return (f'{name} of a block can not be set: it follows from its branches. Set it before the op is expanded or '
            'after its branches are removed; numbers of a plain network come in by load_state_dict')


def _mark(out: Any) -> Any:
    """What tells whether an output is still the same object, unchanged in place."""
    return id(out), None if not isinstance(out, Tensor) or out.is_inference() else out._version


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

    # whether a forward hook has been seen to change what comes out; set in passing, no part of the state
    altered = False
    _given: Any = None

    if TYPE_CHECKING:  # what blocks have
        has_bias: bool

        @property
        def origin(self) -> Branch: ...
        def original_conv(self) -> nn.Conv2d: ...
        def kernel(self) -> Kernel: ...
        def merged(self) -> Kernel: ...
        def assign(self, kernel: Kernel, behind: Optional[Statistics] = None, rescale: bool = True) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As a module; notices forward hooks that change the output, which a fused norm behind would not allow."""
        out = super().__call__(*args, **kwargs)
        if self._given is not None:
            # full backward hooks hand out a view
            if not self._backward_hooks and not self._backward_pre_hooks and _mark(out) != self._given:
                self.altered = True
            self._given = None
        return out

    def note(self, out: Tensor) -> Tensor:
        """Remember what :meth:`forward` gives, for hooks are still to come."""
        if self._forward_hooks:
            self._given = _mark(out)
        return out

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

    @torch.no_grad()
    def read(self, state_dict: Dict[str, Any], prefix: str, missing: List[str], unexpected: List[str],
             errors: List[str]) -> Optional[Kernel]:
        """Read a state dict of the plain network as the convolution would; the block itself stays as it is.

        What is missing, unexpected or of another shape is reported as by the convolution, whose keys make way for the
        block's own. Values that are not there are those of the block.

        Args:
            state_dict (dict): Changed in place.
            prefix (str): Of the block's keys.
            missing, unexpected, errors (list[str]): As PyTorch's loader collects them.

        Returns:
            Kernel: What the convolution would compute; None if nothing of it was there.
        """
        conv, kernel = copy.deepcopy(self.original_conv()), self.kernel()
        for key in ('weight', 'bias') if self.has_bias else ('weight', ):
            conv.register_parameter(key, nn.Parameter(getattr(kernel, key).to(conv.weight.dtype)))
        lacking: List[str] = []
        conv._load_from_state_dict(state_dict, prefix, {}, True, lacking, unexpected, errors)
        missing.extend(lacking)
        for key in [key for key in state_dict if key.startswith(prefix)]:
            del state_dict[key]
        return of_conv(conv) if len(lacking) < len(conv._parameters) - (conv.bias is None) else None

    def show(self, state_dict: Dict[str, Any], prefix: str) -> None:
        """Put the block's own state into a state dict, for whoever loads it next."""
        state_dict.update({f'{prefix}{key}': value.clone() for key, value in self.state_dict().items()})

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, metadata: Any, strict: bool,
                              *report: List[str]) -> None:
        if f'{prefix}weight' in state_dict and not any(key.startswith(f'{prefix}branches.') for key in state_dict):
            # a part of the network is loaded by itself; what stands behind is not known here
            kernel = self.read(state_dict, prefix, *report)
            if kernel is not None:
                self.assign(kernel, running(self.origin.bn), rescale=False)
            self.show(state_dict, prefix)
        super()._load_from_state_dict(  # type: ignore[no-untyped-call]
            state_dict, prefix, metadata, strict, *report)
