"""A structure gives the same network whatever led to it; one that does not fit is refused before anything changes."""
import copy
import json

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mmdyrep.reparam import (
    BRANCHES,
    StructureError,
    blocks_of,
    depth_of,
    describe,
    expand,
    fitting,
    ops_in_keys,
    probe,
    remove,
    survey,
    to_structure,
)
from mmdyrep.reparam.structure import check, ops_within, parent_of, root_of, root_of_key
from mmdyrep.reparam.surgery import geometry_of
from tests.convolutions import EXACT, error, scatter

IMAGES = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    """A stem, a depthwise op, one with its own bias, one that keeps no centre, a 1x1."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, (3, 5), padding='same', groups=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        nn.Conv2d(6, 6, 2, padding=1), nn.BatchNorm2d(6))
    return scatter(net.double(), 1).eval()


FOUND = survey(plain(), probe(plain(), IMAGES))
OPS, REASONS = FOUND


def checked(structure, net=None):
    return check(structure, net or plain(), OPS, REASONS)


def tree(net: nn.Module) -> list:
    """Everything but the numbers: modules with their settings, parameters and keys, in order."""
    return [[(name, str(module) if not list(module.children()) else type(module)) for name, module in
             net.named_modules()], [name for name, _ in net.named_parameters()], list(net.state_dict())]


@st.composite
def structures(draw) -> dict:
    """A structure that fits `plain()`, nested up to two levels deep."""
    ops, net = {}, plain()

    def add(name: str, geometry, depth: int) -> None:
        fits = fitting(list(BRANCHES), geometry)
        names = draw(st.lists(st.sampled_from(fits), unique=True))
        if not names:
            return
        ops[name] = ['kxk', *names]
        expand(net, name, names, OPS, gamma=0.1)
        for branch in ('kxk', '1x1_kxk'):
            if branch in ops[name] and depth < 2:
                inner = f'{name}.branches.{branch}.conv'
                add(inner, geometry_of(net.get_submodule(inner)), depth + 1)

    for name in OPS:
        add(name, geometry_of(net.get_submodule(name)), 0)
    return {'version': 1, 'ops': ops}


@settings(max_examples=25)
@given(st.lists(structures(), min_size=1, max_size=3))
def test_a_structure_gives_one_network_whatever_the_history_and_keeps_its_function(history):
    net, fresh = plain(), plain()
    before = net(IMAGES).detach()
    for structure in history:
        to_structure(net, checked(structure, net), OPS, gamma=0.5)
        assert error(net(IMAGES).detach(), before) < EXACT
    to_structure(fresh, checked(history[-1], fresh), OPS, gamma=0.5)
    assert describe(net) == describe(fresh)
    assert {op: set(names) for op, names in describe(net)['ops'].items()} == {
        op: set(names) for op, names in history[-1]['ops'].items()}
    assert tree(net) == tree(fresh)
    assert list(checked(describe(net))) == sorted(describe(net)['ops'], key=depth_of)
    assert ops_in_keys(net.state_dict()) == checked(describe(net))
    to_structure(net, {}, OPS, gamma=0.5)
    assert tree(net) == tree(plain())
    assert error(net(IMAGES).detach(), before) < EXACT


def test_what_stays_in_a_structure_keeps_its_weights():
    net = plain()
    to_structure(net, {'0': ['kxk', '1x1', '1xk']}, OPS, gamma=0.5)
    weight = net[0].branches['1x1'].conv.weight
    value = weight.detach().clone()
    to_structure(net, {'0': ['kxk', '1x1', '1x1_avg'], '9': ['kxk', 'residual']}, OPS, gamma=0.5)
    assert net[0].branches['1x1'].conv.weight is weight and torch.equal(weight, value)


def test_description_names_parents_first_and_survives_json():
    net = plain()
    for name in ('9', '0', '0.branches.1x1_kxk.conv', '0.branches.kxk.conv', '0.branches.kxk.conv.branches.kxk.conv'):
        expand(net, name, ['1x1_kxk', '1x1_avg'], OPS, gamma=0.1)
    structure = describe(net)
    assert structure == {'version': 1, 'ops': {name: ['kxk', '1x1_kxk', '1x1_avg'] for name in (
        '0', '0.branches.kxk.conv', '0.branches.kxk.conv.branches.kxk.conv', '0.branches.1x1_kxk.conv', '9')}}
    assert list(structure['ops']) == list(blocks_of(net))
    assert checked(json.loads(json.dumps(structure))) == structure['ops']
    assert ops_within(net, '0') == [
        '0', '0.branches.kxk.conv', '0.branches.kxk.conv.branches.kxk.conv',
        '0.branches.kxk.conv.branches.kxk.conv.branches.kxk.conv',
        '0.branches.kxk.conv.branches.kxk.conv.branches.1x1_kxk.conv',
        '0.branches.kxk.conv.branches.1x1_kxk.conv', '0.branches.1x1_kxk.conv',
        '0.branches.1x1_kxk.conv.branches.kxk.conv', '0.branches.1x1_kxk.conv.branches.1x1_kxk.conv']


INNER = '0.branches.1x1_kxk.conv'
BAD = {
    'no dict': (['0'], 'a structure is a dict'),
    'no ops': ({'version': 1}, 'a structure is a dict'),
    'ops no dict': ({'version': 1, 'ops': ['0']}, 'a structure is a dict'),
    'no version': ({'ops': {}}, 'version .* got None'),
    'version zero': ({'version': 0, 'ops': {}}, 'version .* got 0'),
    'version text': ({'version': '1', 'ops': {}}, "version .* got '1'"),
    'version true': ({'version': True, 'ops': {}}, 'version .* got True'),
    'future version': ({'version': 2, 'ops': {}}, 'version 2.*update mmdyrep'),
    'strange key': ({'version': 1, 'ops': {}, 'extra': 1}, 'extra'),
    'unknown op': ({'version': 1, 'ops': {'7.conv': ['kxk', '1x1']}}, '7.conv: the network has no convolution'),
    'name no text': ({'version': 1, 'ops': {0: ['kxk', '1x1']}}, '0: .*must be text'),
    '1x1 op': ({'version': 1, 'ops': {'6': ['kxk', '1x1']}}, '6: kernel 1x1'),
    'unknown branch': ({'version': 1, 'ops': {'0': ['kxk', '3x3']}}, "0: unknown branch '3x3'"),
    'no list': ({'version': 1, 'ops': {'0': 'kxk'}}, '0: branches must be a list'),
    'no names': ({'version': 1, 'ops': {'0': ['kxk', 1]}}, '0: branches must be a list'),
    'original alone': ({'version': 1, 'ops': {'0': ['kxk']}}, "0: needs 'kxk' and at least one other"),
    'no original': ({'version': 1, 'ops': {'0': ['1x1', '1xk']}}, "0: needs 'kxk'"),
    'twice': ({'version': 1, 'ops': {'0': ['kxk', '1x1', '1x1']}}, '0: needs .* each once'),
    'stride': ({'version': 1, 'ops': {'0': ['kxk', 'residual']}}, "0: branch 'residual' needs"),
    'off centre': ({'version': 1, 'ops': {'11': ['kxk', '1x1']}}, "11: branch '1x1' needs an odd kernel"),
    'no parent': ({'version': 1, 'ops': {INNER: ['kxk', '1x1_avg']}}, f'{INNER}: lies in'),
    'parent without the branch': ({'version': 1, 'ops': {'0': ['kxk', '1x1'], INNER: ['kxk', '1x1_avg']}},
                                  f"{INNER}: lies in branch '1x1_kxk' of 0"),
    'in a branch that does not nest': (
        {'version': 1, 'ops': {'0': ['kxk', '1xk'], '0.branches.1xk.conv': ['kxk', '1x1']}}, '0.branches.1xk.conv:'),
    'the padding is in front': ({'version': 1, 'ops': {'0': ['kxk', '1x1_kxk'], INNER: ['kxk', '1x1']}},
                                f"{INNER}: branch '1x1' needs"),
}


@pytest.mark.parametrize('case', BAD)
def test_a_structure_that_does_not_fit_is_refused_by_name_and_nothing_changes(case):
    structure, message = BAD[case]
    net = plain()
    expand(net, '9', ['1x1'], OPS, gamma=0.1)
    before, keys = tree(net), copy.deepcopy(net.state_dict())
    if isinstance(structure, dict) and isinstance(structure.get('ops'), dict):
        # what comes first is right and must not be built either
        structure = {**structure, 'ops': {'3': ['kxk', '1x1'], **structure['ops']}}
    with pytest.raises(StructureError, match=message):
        checked(structure, net)
    assert tree(net) == before
    assert all(torch.equal(value, keys[key]) for key, value in net.state_dict().items())


def test_a_nested_op_of_the_original_has_its_padding():
    ops = {'0': ['kxk', '1x1'], '0.branches.kxk.conv': ['kxk', '1x1']}
    assert checked({'version': 1, 'ops': ops}) == ops


def test_keys_tell_the_structure_also_from_a_part_of_them():
    net = plain()
    expand(net, '0', list(BRANCHES)[:-1], OPS, gamma=0.1)
    expand(net, '9', ['residual', '1x1'], OPS, gamma=0.1)
    expand(net, INNER, ['1x1_avg'], OPS, gamma=0.1)
    assert ops_in_keys(net.state_dict()) == {
        '0': list(BRANCHES)[:-1], '9': ['kxk', '1x1', 'residual'], INNER: ['kxk', '1x1_avg']}
    assert ops_in_keys([f'{INNER}.branches.1x1_avg.bn1.weight']) == {'0': ['1x1_kxk'], INNER: ['1x1_avg']}
    assert ops_in_keys(plain().state_dict()) == {}


def test_a_branch_of_a_newer_version_is_refused():
    with pytest.raises(StructureError, match="conv1: unknown branch '9x9'.*newer version"):
        ops_in_keys(['conv1.branches.kxk.bn.weight', 'conv1.branches.9x9.bn.weight'])


def test_modules_called_branches_in_a_network_of_its_own_are_no_blocks():
    """HRNet's are."""
    op = 'stage2.0.branches.0.0.conv1'
    assert depth_of(op) == 0 and depth_of(f'{op}.branches.kxk.conv') == 1
    assert depth_of(f'{op}.branches.1x1_kxk.conv.branches.kxk.conv') == 2
    assert parent_of(op) is None and parent_of(f'{op}.branches.kxk.conv') == f'{op}.branches.kxk'
    assert root_of(f'{op}.branches.1x1_kxk.conv.branches.kxk.conv') == root_of(op) == op
    assert root_of_key(f'{op}.weight') is None and root_of_key(f'{op}.scale') is None
    assert root_of_key(f'{op}.branches.kxk.conv.branches.1x1.bn.weight') == op
    assert ops_in_keys([f'{op}.weight', f'{op}.branches.1x1.bn.weight']) == {op: ['1x1']}
    assert ops_in_keys(['net.branches.left.conv.branches.kxk.bn.weight']) == {'net.branches.left.conv': ['kxk']}


def test_removing_by_hand_and_by_structure_come_to_the_same():
    one, two = plain(), plain()
    for net in (one, two):
        torch.manual_seed(0)
        expand(net, '0', ['1x1', '1xk', '1x1_kxk'], OPS, gamma=0.5)
    remove(one, '0', ['1x1_kxk', '1x1'], OPS)
    to_structure(two, {'0': ['kxk', '1xk']}, OPS, gamma=0.5)
    assert tree(one) == tree(two)
    assert all(error(a, b) < EXACT for a, b in zip(one.state_dict().values(), two.state_dict().values()))
