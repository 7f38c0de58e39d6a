"""Networks as people write them: whatever lies between a convolution and its norm, or knows them by another way."""
import copy
import threading
import types
from typing import Callable, Dict, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune


def conv(inner: int = 4, outer: int = 4, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, **{'kernel_size': 3, 'padding': 1, 'bias': False, **kwargs})


class Net(nn.Module):
    """Three convolutions and norms in a row; the second pair, ``b`` and ``bn_b``, is the strange one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = conv(3), nn.BatchNorm2d(4)
        self.b, self.bn_b = conv(), nn.BatchNorm2d(4)
        self.c, self.bn_c = conv(), nn.BatchNorm2d(4)

    def pair(self, x: Tensor) -> Tensor:
        return self.bn_b(self.b(x))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_a(self.a(x)))
        return self.bn_c(self.c(F.relu(self.pair(x))))


class NormAct(nn.BatchNorm2d):
    """Norm and activation in one, as timm's BatchNormAct2d."""

    def __init__(self, channels: int, act: bool = True) -> None:
        super().__init__(channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return F.relu(out) if self.act else out


class ActNormAct(nn.BatchNorm2d):
    """An activation in front of the norm, within it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x))


class Offset(nn.BatchNorm2d):
    """Gamma is stored as the offset from 1."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, 1 + self.weight, self.bias, self.training)


class Sized(nn.BatchNorm2d):
    """A constructor of its own."""

    def __init__(self, config: dict) -> None:
        super().__init__(config['channels'])


def normed(norm: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net()
        net.bn_b = norm()
        return net
    return make


def changed(change: Callable[[Net], None]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net()
        change(net)
        return net
    return make


def written(name: str, pair: Callable[[Net, Tensor], Tensor], init: Callable[[Net], None] = lambda net: None
            ) -> Callable[[], nn.Module]:
    """Network whose second pair is used as a function says."""
    kind = type(name, (Net,), {'pair': pair})

    def make() -> nn.Module:
        net = kind()
        init(net)
        return net
    return make


def relu_hook(module: nn.Module, inputs: Tuple, output: Tensor) -> Tensor:
    return F.relu(output)


def read_only_hook(module: nn.Module, inputs: Tuple, output: Tensor) -> None:
    assert output.dim() == 4


def own_forward(net: Net) -> None:
    original = net.b.forward
    net.b.forward = lambda x: F.relu(original(x))


def own_conv_forward(net: Net) -> None:
    net.b._conv_forward = types.MethodType(
        lambda self, x, weight, bias: F.conv2d(2 * x, weight, bias, 1, 1), net.b)


class Half(nn.Module):

    def forward(self, bias: Tensor) -> Tensor:
        return bias / 2


def parametrized_bias(net: Net) -> None:
    net.b = conv(bias=True)
    parametrize.register_parametrization(net.b, 'bias', Half())


def pruned_bias(net: Net) -> None:
    net.b = conv(bias=True)
    prune.l1_unstructured(net.b, 'bias', 0.5)


def tied_bias(net: Net) -> None:
    net.b, net.c = conv(bias=True), conv(bias=True)
    net.c.bias = net.b.bias


def stale_padding(net: Net) -> None:
    net.b = conv(padding='same')
    net.b.dilation = (2, 2)


def cut_channels(net: Net) -> None:
    """Channels pruned by hand; the attributes of the modules stay as they were."""
    net.a.weight = nn.Parameter(net.a.weight[:3].detach().clone())
    net.b.weight = nn.Parameter(net.b.weight[:, :3].detach().clone())
    for name in ('weight', 'bias'):
        setattr(net.bn_a, name, nn.Parameter(getattr(net.bn_a, name)[:3].detach().clone()))
    for name in ('running_mean', 'running_var'):
        setattr(net.bn_a, name, getattr(net.bn_a, name)[:3].clone())


def listed(net: Net) -> None:
    net.layers = [net.b, net.bn_b]


def through_list(net: Net, x: Tensor) -> Tensor:
    return net.layers[1](net.layers[0](x))


def by_type(net: Net, x: Tensor) -> Tensor:
    for module in list(net.modules()):
        if isinstance(module, nn.Conv2d) and module.in_channels == 4 and module is not net.c:
            x = module(x)
    return net.bn_b(x)


def functional(net: Net, x: Tensor) -> Tensor:
    return net.bn_b(F.conv2d(x, net.b.weight, None, 1, 1))


def regularized(net: Net, x: Tensor) -> Tensor:
    """The weight is read once more, by value."""
    return net.bn_b(net.b(x)) * net.b.weight.abs().mean()


class Switch(nn.Module):
    """One of two norms, by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.domain = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.domain](x)


def second_norm(net: Net) -> None:
    net.bn_aux = nn.BatchNorm2d(4)


def norm_by_mode(net: Net, x: Tensor) -> Tensor:
    return (net.bn_aux if net.training else net.bn_b)(net.b(x))


def norm_by_switch(net: Net, x: Tensor) -> Tensor:
    return (net.bn_aux if getattr(net, 'adversarial', False) else net.bn_b)(net.b(x))


def read_in_training(net: Net, x: Tensor) -> Tensor:
    y = net.b(x)
    if net.training:
        net.auxiliary = y.mean()
    return net.bn_b(y)


class Lazy(Net):

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, 'extra'):
            self.extra = conv().to(x)
        return super().forward(self.extra(torch.cat([x, x[:, :1]], 1))[:, :3])


class Counting(Net):
    """State in Python and in buffers, set by the first forward pass and counted in each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.log = 0, []
        self.register_buffer('initialized', torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(4))

    def pair(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.log.append(x.mean())
        if not self.initialized:
            self.shift.data.copy_(-x.mean((0, 2, 3)))
            self.initialized.fill_(1)
        return self.bn_b(self.b(x + self.shift.view(1, -1, 1, 1)))


@torch.jit.script
def scripted_relu_(x: Tensor) -> Tensor:
    return x.relu_()


@torch.jit.script
def scripted_gate(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def with_gate(net: Net, x: Tensor) -> Tensor:
    y = net.b(x)
    return net.bn_b(y) + scripted_gate(y)


class Scripted(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


class Branches(Net):
    """Has branches of its own, under our names."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({'1x1': nn.Conv2d(4, 4, 1, bias=False), 'kxk': conv()})

    def pair(self, x: Tensor) -> Tensor:
        return self.bn_b(self.branches['1x1'](x) + self.branches['kxk'](x) + self.b(x))


class Holder:

    def __init__(self, **parts) -> None:
        self.__dict__.update(parts)


def kept(net: Net, x: Tensor) -> Tensor:
    net.hint = Holder(features=[net.b(x)])
    return net.bn_b(net.hint.features[0])


class Returned(Net):
    """Gives an object that holds the raw output, too."""

    def forward(self, x: Tensor) -> Holder:
        y = self.b(F.relu(self.bn_a(self.a(x))))
        return Holder(raw=y, out=self.bn_c(self.c(self.bn_b(y))))


class FusedInEval(Net):
    """Replaces one convolution and its norm when it is put into eval mode."""

    def train(self, mode: bool = True) -> nn.Module:
        if not mode and isinstance(self.bn_b, nn.BatchNorm2d):
            self.fused, self.b, self.bn_b = conv().to(self.a.weight), nn.Identity(), nn.Identity()
        return super().train(mode)

    def pair(self, x: Tensor) -> Tensor:
        return self.fused(x) if hasattr(self, 'fused') else super().pair(x)


def loop(net: Net, x: Tensor) -> Tensor:
    hidden = torch.zeros_like(x)
    for _ in range(3):
        hidden = torch.tanh(net.b(x + hidden))
    return net.bn_b(hidden)


def stochastic_depth(net: Net, x: Tensor) -> Tensor:
    return x if net.training and torch.rand(()) < 0.5 else x + net.bn_b(net.b(x))


def by_name(net: Net, x: Tensor) -> Tensor:
    modules = dict(net.named_modules())
    return modules['bn_b'](modules['b'](x))


def in_a_thread(net: Net, x: Tensor) -> Tensor:
    found = []
    thread = threading.Thread(target=lambda: found.append(net.bn_b(net.b(x))))
    thread.start()
    thread.join()
    return found[0]


class Exchanging(Net):
    """Exchanges its convolutions in each forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        self.b, self.c = self.c, self.b
        return super().forward(x)


class Holding(Net):
    """Holds what can't be copied, and a tensor of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.numbers, self.one = threading.Lock(), (i for i in range(9)), nn.Parameter(torch.ones(1)) * 1

    def pair(self, x: Tensor) -> Tensor:
        with self.lock:
            return super().pair(x) * self.one.to(x)


class InMode(Net):

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(x).clone()


class Exact(Net):
    """Asks for the class of its convolution."""

    def pair(self, x: Tensor) -> Tensor:
        return self.bn_b(self.b(x)) if type(self.b) is nn.Conv2d else x


def tied_statistics(net: Net) -> None:
    net.bn_c.running_mean = net.bn_b.running_mean


class Case(NamedTuple):
    """A strange network.

    Args:
        make (callable): Makes it.
        reason (str): What ``skipped()`` says of ``b``; empty where it can be expanded.
    """

    make: Callable[[], nn.Module]
    reason: str = ''


ANOTHER = 'is another'
STRANGE: Dict[str, Case] = {
    'norm and activation in one': Case(normed(lambda: NormAct(4))),
    'gamma as an offset': Case(normed(lambda: Offset(4))),
    'norm with a constructor of its own': Case(normed(lambda: Sized(dict(channels=4)))),
    'activation in front, within the norm': Case(normed(lambda: ActNormAct(4)), ANOTHER),
    'hook that changes the output': Case(changed(lambda net: net.b.register_forward_hook(relu_hook)), 'has hooks'),
    'hook that reads': Case(changed(lambda net: net.b.register_forward_hook(read_only_hook)), 'has hooks'),
    'hook in front of the norm': Case(changed(lambda net: net.bn_b.register_forward_pre_hook(
        lambda module, inputs: F.relu(inputs[0]))), 'the batch norm behind has hooks'),
    'hook behind the norm': Case(changed(lambda net: net.bn_b.register_forward_hook(relu_hook))),
    'forward set on the instance': Case(changed(own_forward), 'has a forward of its own'),
    '_conv_forward set on the instance': Case(changed(own_conv_forward), 'has a _conv_forward of its own'),
    'parametrized bias': Case(changed(parametrized_bias), 'its bias is computed'),
    'pruned bias': Case(changed(pruned_bias), 'its bias is computed'),
    'tied bias': Case(changed(tied_bias), 'shares its bias with c'),
    "padding='same', dilation changed": Case(changed(stale_padding)),
    'channels cut by hand': Case(changed(cut_channels)),
    'kept in a list': Case(written('Listed', through_list, listed), 'does not call it by its name'),
    'found by its type': Case(written('ByType', by_type), 'fails|another|by its name'),
    'weight read functionally': Case(written('Functional', functional), 'called 0 times'),
    'weight read once more': Case(written('Regularized', regularized)),
    'norms in a switch': Case(normed(Switch), 'bn_b.norms.1, which was not reached'),
    'norm by mode': Case(written('ByMode', norm_by_mode, second_norm), 'no batch norm reads its output alone'),
    'norm by a switch': Case(written('BySwitch', norm_by_switch, second_norm), 'bn_aux, which was not reached'),
    'read in training alone': Case(written('InTraining', read_in_training), 'no batch norm reads its output alone'),
    'made by the first forward': Case(Lazy),
    'lazy convolution': Case(changed(lambda net: setattr(net, 'b', nn.LazyConv2d(4, 3, padding=1, bias=False))),
                             'made by the first forward pass'),
    'lazy norm': Case(changed(lambda net: setattr(net, 'bn_b', nn.LazyBatchNorm2d())),
                      'made by the first forward pass'),
    'state set by the first forward, counters': Case(Counting),
    'compiled activation in place': Case(written('InPlace', lambda net, x: net.bn_b(scripted_relu_(net.b(x)))),
                                         'no batch norm reads its output alone'),
    'compiled gate beside the norm': Case(written('Gated', with_gate), ANOTHER),
    'compiled module within': Case(written('Within', lambda net, x: net.bn_b(net.b(net.scripted(x))),
                                           lambda net: setattr(net, 'scripted', torch.jit.script(Scripted())))),
    'branches of its own': Case(Branches, 'no batch norm reads'),
    'raw output kept in an attribute': Case(written('Kept', kept), 'no batch norm reads its output alone'),
    'raw output returned in an object': Case(Returned, 'no batch norm reads its output alone'),
    'fused when put into eval mode': Case(FusedInEval, 'is not there in eval mode'),
    'running mean shared by two norms': Case(changed(tied_statistics),
                                             'the batch norm behind shares its running_mean with bn_c'),
    'graph module': Case(lambda: torch.fx.symbolic_trace(Net())),
    'synchronized norms': Case(lambda: nn.SyncBatchNorm.convert_sync_batchnorm(Net())),
    'two names for one convolution': Case(written('Named', lambda net, x: net.bn_b(net.other(x)), lambda net: setattr(
        net, 'other', net.b)), 'shares its weight with other'),
    'dropout in eval mode': Case(written('Dropping', lambda net, x: net.bn_b(net.b(F.dropout(x, training=True))))),
    'identity in between': Case(written('Between', lambda net, x: net.bn_b(net.between(net.b(x))), lambda net: setattr(
        net, 'between', nn.Identity()))),
    'called in a loop': Case(written('Loop', loop), 'called 3 times'),
    'dropout between convolution and norm': Case(written('Dropped', lambda net, x: net.bn_b(F.dropout2d(
        net.b(x), 0.5, net.training))), 'no batch norm reads its output alone'),
    'stochastic depth': Case(written('Depth', stochastic_depth)),
    'through a Fourier transform': Case(written('Fourier', lambda net, x: torch.fft.irfft2(torch.fft.rfft2(
        net.bn_b(net.b(x)))))),
    'called by its name in a dict': Case(written('ByName', by_name)),
    'called in a thread': Case(written('Threaded', in_a_thread), 'no batch norm reads its output alone'),
    'convolutions exchanged in the forward': Case(Exchanging, ANOTHER),
    'a lock, a generator, a tensor of a graph': Case(Holding),
    'inference mode in the forward': Case(InMode),
    'class of the convolution is asked for': Case(Exact, 'by its name|another'),
    'half precision': Case(lambda: Net().half()),
    'called twice': Case(written('Twice', lambda net, x: net.bn_b(net.b(net.b(x)))), 'called 2 times'),
    'a shallow copy in use': Case(written('Copied', lambda net, x: net.bn_b(copy.copy(net.b)(x)))),
    'norm called by keyword': Case(written('Keyword', lambda net, x: net.bn_b(input=net.b(x)))),
    'weights of zero behind': Case(changed(lambda net: nn.init.zeros_(net.bn_b.weight))),
}
