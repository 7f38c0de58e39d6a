"""What a block takes over from the convolution whose place it takes, and hands back."""
from torch import nn

# what handles of hooks point to, by the names that PyTorch gives them
HOOK_TABLES = ('_forward_hooks', '_forward_hooks_with_kwargs', '_forward_hooks_always_called', '_forward_pre_hooks',
               '_forward_pre_hooks_with_kwargs', '_backward_hooks', '_backward_pre_hooks', '_is_full_backward_hook')


def exchange_hooks(one: nn.Module, other: nn.Module) -> None:
    """Exchange the hooks of two modules.

    The tables themselves change places: handles point to them, not to modules, and can still remove their hooks.
    """
    for name in HOOK_TABLES:
        if name in vars(one):
            vars(one)[name], vars(other)[name] = vars(other)[name], vars(one)[name]


def why_not_now(model: nn.Module, name: str) -> str:
    """What has been done to a convolution after the survey that a block can't take over; empty if nothing.

    Args:
        model (nn.Module): The network.
        name (str): Of an op that is no block.
    """
    op = model.get_submodule(name)
    if not isinstance(op, nn.Conv2d):
        return f'has become {type(op).__name__} since the network was looked at'
    kind = type(op)
    own = [name for name in vars(op) if callable(getattr(kind, name, None))]
    if own:
        return f'has a {own[0]} of its own, set on the instance since the network was looked at'
    for name in ('weight', 'bias'):
        if name not in op._parameters or name == 'weight' and op._parameters[name] is None:
            return f'its {name} has been parametrized or pruned since the network was looked at'
    if op._backward_hooks and not op._is_full_backward_hook:
        return 'has a hook of register_backward_hook, which sees gradients of its last operation only; use ' \
               'register_full_backward_hook'
    for other, module in model.named_modules():
        if module is not op and any(part is not None and (part is op.weight or part is op.bias)
                                    for part in module._parameters.values()):
            return f'has come to share a parameter with {other} since the network was looked at'
    return ''
