"""Plain files with something missing or too much, into models with blocks: reported, and taken, as by the plain one."""
import copy
import logging
from collections import OrderedDict

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from mmdyrep import DyRepBackbone
from tests.convolutions import scatter

from ..backbones import difference, images, outputs


class Net(nn.Module):
    """A bias and a norm behind, a norm alone, a bias alone; a sub-module, so that keys have prefixes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, padding=1), bn=nn.BatchNorm2d(4)))
        self.conv = nn.Conv2d(4, 6, (3, 5), padding=(1, 2), stride=2, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 6, 3, dilation=2, groups=2)

    def forward(self, x):
        return self.last(self.bn(self.conv(self.stem(x).relu())).relu())


def plain(seed: int) -> Net:
    return scatter(Net().double(), seed).eval()


def without(*keys):
    return lambda state: [state.pop(key) for key in keys]


def changed(**values):
    return lambda state: state.update({key.replace('__', '.'): value for key, value in values.items()})


EDITS = {
    'as it is': lambda state: None,
    'weight missing': without('stem.conv.weight', 'conv.weight', 'last.weight'),
    'bias missing': without('stem.conv.bias', 'last.bias'),
    'all of an op missing': without('stem.conv.weight', 'stem.conv.bias'),
    'bias too much': changed(conv__bias=torch.ones(6)),
    'weight of another shape': changed(conv__weight=torch.ones(6, 4, 3, 3), last__weight=torch.ones(1)),
    'bias of another shape': changed(stem__conv__bias=torch.ones(5)),
    'key too much': changed(conv__extra=torch.ones(1), last__weight_g=torch.ones(1), elsewhere=torch.ones(1)),
    'norm of another shape': changed(bn__running_mean=torch.ones(7), bn__running_var=torch.ones(7)),
    'norm missing': without('bn.running_mean', 'bn.weight', 'stem.bn.running_var'),
    'no tensor': changed(conv__weight='a text', last__bias=3),
    'half precision': lambda state: state.update({key: value.half() for key, value in state.items()}),
    'nothing': lambda state: state.clear(),
}
STRUCTURE = {'version': 1, 'ops': {'stem.conv': ['kxk', '1x1_kxk', '1x1_avg'], 'conv': ['kxk', '1x1', '1xk'],
                                   'conv.branches.kxk.conv': ['kxk', '1x1'], 'last': ['kxk', '1x1_avg']}}


def models(kind: str) -> tuple:
    """The plain network and one with blocks that computes the same."""
    source = plain(1)
    net = DyRepBackbone(copy.deepcopy(source), **(
        dict(static=True) if kind == 'static' else dict(structure=STRUCTURE) if kind == 'structure' else {}))
    if kind == 'expanded':
        net.load_structure(STRUCTURE)
    net.eval()
    assert difference(outputs(net, images(16)), outputs(source, images(16))) < 1e-9
    return source, net


def by_torch(model: nn.Module, state: dict, strict: bool) -> list:
    try:
        found = model.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        return items(str(error).replace(type(model).__name__, ''))
    return [sorted(found.missing_keys), sorted(found.unexpected_keys)]


def by_mmengine(model: nn.Module, state: dict, strict: bool) -> list:
    said = []
    logger = logging.Logger('loading')
    logger.warning = said.append
    try:
        load_state_dict(model, state, strict, logger)
    except RuntimeError as error:
        said.append(str(error))
    return items('\n'.join(said))


def items(message: str) -> list:
    """What a loader says, key by key, whatever the order."""
    words = message.replace('state_dict: ', 'state_dict, ').replace('"', '').replace('\n', ', ').split(', ')
    return sorted(word.strip().rstrip('. ') for word in words)


@pytest.mark.parametrize('kind', ['static', 'structure', 'expanded'])
@pytest.mark.parametrize('edit', EDITS)
@pytest.mark.parametrize('load', [by_torch, by_mmengine])
@pytest.mark.parametrize('strict', [False, True])
def test_reports_and_function_are_those_of_the_plain_network(kind, edit, load, strict):
    source, net = models(kind)
    state = plain(2).state_dict()
    EDITS[edit](state)
    assert load(net, dict(state), strict) == load(source, dict(state), strict)
    tolerance = 1e-6 if edit == 'half precision' else 1e-9
    assert difference(outputs(net, images(16)), outputs(source, images(16))) < tolerance


def test_a_static_model_takes_the_count_of_batches_from_a_file():
    source, net = plain(2), models('static')[1]
    source.bn.num_batches_tracked.fill_(7)
    net.load_state_dict(source.state_dict())
    assert int(net.conv.origin.bn.num_batches_tracked) == int(net.bn.num_batches_tracked) == 7


# ---------------------------------------------------------------------- names of ours in the network itself

class Parallel(nn.Module):
    """A convolution and norm in a ModuleDict called as blocks call theirs, keys and children, too."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleDict()
        for name, size in (('kxk', 3), ('1x1', 1), ('1x1_kxk', 5), ('left', 3)):
            self.branches[name] = nn.Sequential(OrderedDict(
                conv=nn.Conv2d(4, 4, size, padding=size // 2, bias=False), bn=nn.BatchNorm2d(4)))

    def forward(self, x):
        return sum(branch(x) for branch in self.branches.values()).relu()


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = Parallel()
        self.branches = nn.ModuleDict(
            {'kxk': nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 3), bn=nn.BatchNorm2d(4)))})

    def forward(self, x):
        return self.branches['kxk'](self.stage(self.stem(x)))


OPS = ['stem', 'stage.branches.kxk.conv', 'stage.branches.1x1_kxk.conv', 'stage.branches.left.conv',
       'branches.kxk.conv']


def own(seed: int, **settings) -> DyRepBackbone:
    return DyRepBackbone(scatter(Own().double(), seed), **settings).eval()


def grown(seed: int) -> DyRepBackbone:
    net = own(seed)
    for op in OPS[:2]:
        net.expand(op, ['1x1', '1x1_kxk'])
        net.expand(f'{op}.branches.1x1_kxk.conv', ['1x1_avg'])
    net.expand(OPS[4], ['1x1_avg'])
    return scatter(net, seed)


def test_modules_with_our_names_are_surveyed_and_expanded_like_others():
    net = own(0)
    assert net.candidates() == OPS
    x, before = images(12), outputs(net, images(12))
    for op in OPS:
        net.expand(op)
        inner = f'{op}.branches.kxk.conv'
        net.expand(inner, ['1x1_avg'])
        with pytest.raises(ValueError, match='lies in 2 blocks already'):
            net.expand(f'{inner}.branches.kxk.conv', ['1x1_avg'])
        # a norm of a nested block stands behind its op in the block
        assert net.norm_behind(inner) is net.get_submodule(f'{op}.branches.kxk.bn')
    assert net.norm_behind(OPS[1]) is net.stage.branches['kxk'].bn
    assert difference(outputs(net, x), before) < 1e-9
    assert list(net.structure['ops']) == [name for op in OPS for name in (op, f'{op}.branches.kxk.conv')]
    other = own(1, structure=net.structure)
    assert other.structure == net.structure
    net.remove(OPS[1], net.get_submodule(OPS[1]).added)
    assert type(net.get_submodule(OPS[1])) is nn.Conv2d
    assert difference(outputs(net, x), before) < 1e-9
    plain_net = net.to_plain()
    assert list(plain_net.state_dict()) == list(Own().state_dict())
    assert difference(outputs(plain_net, x), before) < 1e-9
    net.switch_to_deploy()
    assert difference(outputs(net, x), before) < 1e-9


@pytest.mark.parametrize('settings', [{}, dict(static=True)])
def test_their_files_load_with_and_without_blocks(settings):
    source = grown(3)
    net = own(1, **settings)
    net.load_state_dict(source.state_dict(), strict=True)
    assert net.structure == source.structure
    assert difference(outputs(net, images(12)), outputs(source, images(12))) == 0
    net = own(1, **settings)
    before = net.structure
    net.load_state_dict(source.to_plain().state_dict(), strict=True)
    assert net.structure == before
    assert difference(outputs(net, images(12)), outputs(source, images(12))) < 1e-9
    later = grown(4)
    later.load_state_dict(source.to_plain().state_dict(), strict=True)
    assert not later.structure['ops']
    assert difference(outputs(later, images(12)), outputs(source, images(12))) < 1e-9
