"""Checkpoints with and without blocks, into models with and without blocks, by every loader."""
import copy

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.fileio import write_checkpoint
from mmdyrep.models.loading import looks_augmented, target_structure
from mmdyrep.reparam import StructureError

from ..backbones import HRNET, SMALL, classifier, difference, images, outputs, plain, unfriendly, wrapped

OP, OTHER = 'layer1.0.conv2', 'layer2.1.conv1'
STRUCTURE = {'version': 1, 'ops': {OP: ['kxk', '1x1', '1x1_kxk'], f'{OP}.branches.kxk.conv': ['kxk', 'residual']}}
ELSE = {'version': 1, 'ops': {OP: ['kxk', 'residual'], OTHER: ['kxk', '1x1', '1x1_avg']}}


def by_torch(model, state, tmp_path):
    model.load_state_dict(state, strict=True)


def by_mmengine(model, state, tmp_path):
    write_checkpoint(tmp_path / 'checkpoint.pth', dict(state_dict=state, meta={}))
    load_checkpoint(model, str(tmp_path / 'checkpoint.pth'), strict=True)


def by_runner(model, state, tmp_path):
    write_checkpoint(tmp_path / 'checkpoint.pth', dict(state_dict=state, meta={}))
    runner = Runner(model, str(tmp_path), experiment_name=tmp_path.name, log_level='ERROR')
    runner.load_checkpoint(str(tmp_path / 'checkpoint.pth'), strict=True)


LOADERS = pytest.mark.parametrize('load', [by_torch, by_mmengine, by_runner])
TARGETS = {
    'unexpanded': {}, 'expanded': {}, 'static': dict(static=True), 'structure': dict(structure=ELSE),
    'same': dict(structure=STRUCTURE)}


def target(kind, inside):
    torch.manual_seed(1)
    model = classifier(**TARGETS[kind]) if inside else DyRepBackbone(SMALL, **TARGETS[kind])
    unfriendly(model, 1).double()
    if kind == 'expanded':
        (model.backbone if inside else model).load_structure(ELSE)
    return model


@LOADERS
@pytest.mark.parametrize('kind', TARGETS)
@pytest.mark.parametrize('inside', [False, True])
def test_augmented_checkpoint_brings_its_structure_to_any_model(tmp_path, load, kind, inside):
    source = target('unexpanded', inside)
    body = source.backbone if inside else source
    unfriendly(source, 5)
    body.load_structure(STRUCTURE)
    state, model = source.state_dict(), target(kind, inside)
    kept = copy.deepcopy(state)
    load(model, state, tmp_path)
    net = model.backbone if inside else model
    assert net.structure == STRUCTURE
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert difference(outputs(net, images()), outputs(body, images())) == 0
    # the caller's own is left alone
    assert list(state) == list(kept)


@LOADERS
@pytest.mark.parametrize('kind', TARGETS)
@pytest.mark.parametrize('inside', [False, True])
def test_plain_checkpoint_brings_its_function(tmp_path, load, kind, inside):
    source, model = target('unexpanded', inside), target(kind, inside)
    body = source.backbone if inside else source
    net = model.backbone if inside else model
    unfriendly(source, 5)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.3)
    before = net.structure
    load(model, source.state_dict(), tmp_path)
    # static or structure= pins; what was expanded later goes
    assert net.structure == (before if kind in ('static', 'structure', 'same') else {'version': 1, 'ops': {}})
    assert difference(outputs(net, images()), outputs(body, images())) < 1e-9


def test_branches_of_a_pinned_model_outlive_a_plain_checkpoint():
    net, source = target('structure', False), plain(SMALL, seed=6)
    branch = net.get_submodule(f'{OTHER}.branches.1x1')
    kept = copy.deepcopy(branch.state_dict())
    net.load_state_dict(source.state_dict())
    assert net.get_submodule(f'{OTHER}.branches.1x1') is branch
    assert all(torch.equal(value, kept[key]) for key, value in branch.state_dict().items())
    # and the original starts as a block just expanded does: scale the deviation behind, gamma 1
    block, behind = net.get_submodule(OP), net.norm_behind(OP)
    assert torch.allclose(block.scale, (behind.running_var + behind.eps).sqrt())
    assert torch.allclose(block.origin.bn.weight, torch.ones_like(block.scale))


def test_own_bias_of_convolutions_goes_into_the_block_and_back():
    cfg = dict(type='mmpretrain.VGG', depth=11, norm_cfg=dict(type='BN'))
    source = plain(cfg, seed=2)
    for layer in source.features:
        if hasattr(layer, 'conv'):
            nn.init.normal_(layer.conv.bias)
    net = wrapped(cfg, seed=1, static=True)
    net.load_state_dict(source.state_dict())
    assert difference(outputs(net, images()), outputs(source, images())) < 1e-9
    # statistics of the original are those of its output before the bias
    name = 'features.0.conv'
    mean = net.norm_behind(name).running_mean - source.get_submodule(name).bias
    assert torch.allclose(net.get_submodule(name).origin.bn.running_mean, mean)
    again = MODELS.build(cfg).double()
    again.load_state_dict(net.to_plain().state_dict())
    assert difference(outputs(again, images()), outputs(source, images())) < 1e-9


def test_ops_without_a_norm_behind():
    def build():
        return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 5, padding=2)).double().eval()

    source, net = build(), DyRepBackbone(build(), static=True)
    net.load_state_dict(source.state_dict())
    assert list(net.structure['ops']) == ['0', '2']
    assert difference(outputs(net, images()), outputs(source, images())) < 1e-9


def test_weights_from_half_precision_and_other_dtypes():
    source = plain(SMALL, seed=4)
    state = {key: value.half() if value.is_floating_point() else value for key, value in source.state_dict().items()}
    source.load_state_dict(state)
    net = target('structure', False)
    net.load_state_dict(state)
    assert next(net.parameters()).dtype == torch.float64
    assert difference(outputs(net, images()), outputs(source, images())) < 1e-9


# ---------------------------------------------------------------------- partial and wrong files

def test_partial_files_leave_other_ops_as_they_are():
    net = target('expanded', False)
    before = net.structure['ops']
    source = wrapped(SMALL, seed=3)
    source.load_structure(STRUCTURE)
    part = {key: value for key, value in source.state_dict().items() if key.startswith('layer1.')}
    result = net.load_state_dict(part, strict=False)
    assert result.unexpected_keys == [] and not [key for key in result.missing_keys if key.startswith('layer1.')]
    assert net.structure['ops'] == {**STRUCTURE['ops'], OTHER: before[OTHER]}
    assert torch.equal(net.state_dict()[f'{OP}.scale'], part[f'{OP}.scale'])


def test_partial_plain_file_makes_only_its_ops_plain():
    net = target('expanded', False)
    part = {key: value for key, value in plain(SMALL).state_dict().items() if key.startswith('layer1.')}
    net.load_state_dict(part, strict=False)
    assert list(net.structure['ops']) == [OTHER]


def test_file_without_the_backbone_changes_nothing_of_it():
    model = target('expanded', True)
    state = copy.deepcopy(model.backbone.state_dict())
    head = {key: value + 1 for key, value in model.state_dict().items() if key.startswith('head.')}
    assert model.load_state_dict(head, strict=False).unexpected_keys == []
    assert all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())
    assert torch.equal(model.state_dict()['head.fc.bias'], head['head.fc.bias'])


@pytest.mark.parametrize('edit, message', [
    (lambda key: key.replace(OP, 'layer1.7.conv2'), 'layer1.7.conv2.*another architecture'),
    (lambda key: key.replace(OP, 'layer2.0.downsample.0'), 'layer2.0.downsample.0'),
    (lambda key: key.replace('branches.1x1.', 'branches.5x5.'), "unknown branch '5x5'.*newer version"),
    (lambda key: key.replace(OP, 'layer2.0.conv1'), "layer2.0.conv1.*'residual' needs equal channels"),
])
def test_checkpoint_of_another_architecture_is_refused_with_the_name_of_the_op(edit, message):
    source = wrapped(SMALL)
    source.load_structure({'version': 1, 'ops': {OP: ['kxk', '1x1', 'residual']}})
    state = {edit(key): value for key, value in source.state_dict().items()}
    model = target('expanded', True)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StructureError, match=message):
        model.load_state_dict({f'backbone.{key}': value for key, value in state.items()}, strict=False)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()
               if key.startswith('backbone.'))


@pytest.mark.parametrize('kind', ['unexpanded', 'structure'])
def test_weights_of_another_shape_are_named_with_both_shapes(kind):
    state = plain(dict(SMALL, base_channels=16, stem_channels=16)).state_dict()
    with pytest.raises(RuntimeError, match=rf'size mismatch for {OP}.weight: .*16, 16, 3, 3.*8, 8, 3, 3'):
        target(kind, False).load_state_dict(state)
    with pytest.raises(RuntimeError, match=rf'size mismatch for {OP}.weight'):
        load_state_dict(target(kind, False), state, strict=True)


def test_strict_loading_names_missing_and_unexpected_keys_of_an_expanded_model():
    source = wrapped(SMALL)
    source.load_structure(STRUCTURE)
    state = source.state_dict()
    del state[f'{OP}.branches.1x1.bn.bias']
    state['extra'] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r'layer1.0.conv2.branches.1x1.bn.bias[\s\S]*extra'):
        target('unexpanded', False).load_state_dict(state)


def test_modules_called_branches_are_told_from_blocks():
    op = 'stage2.0.branches.0.0.conv1'
    source = wrapped(HRNET)
    source.expand(op)
    source.expand(f'{op}.branches.kxk.conv', ['1x1'])
    net = wrapped(HRNET, seed=1)
    net.load_state_dict(source.state_dict())
    assert net.structure == source.structure and list(net.structure['ops'])[0] == op
    static = wrapped(HRNET, seed=2, static=True)
    static.load_state_dict(source.to_plain().state_dict())
    assert op in static.structure['ops']
    assert difference(outputs(static, images(64)), outputs(source, images(64))) < 1e-9


# ---------------------------------------------------------------------- the parts

def test_looks_augmented():
    net = wrapped(SMALL)
    assert not looks_augmented(net.state_dict()) and not looks_augmented(plain(HRNET).state_dict())
    net.expand(OP)
    assert looks_augmented(net.state_dict())


@pytest.mark.parametrize('pinned', [False, True])
def test_structure_that_a_file_asks_for(pinned):
    net = wrapped(SMALL)
    net.load_structure(ELSE)
    eligible = list(net.survey.ops)

    def ops(keys):
        return target_structure(net, keys, eligible, pinned)['ops']

    assert ops([]) == ELSE['ops']
    assert ops(['unrelated.branches.kxk.conv.weight']) == ELSE['ops']
    assert ops([f'{OP}.weight']) == (ELSE['ops'] if pinned else {OTHER: ELSE['ops'][OTHER]})
    block = [f'conv1.branches.{name}.bn.weight' for name in ('kxk', '1x1')]
    assert ops(block) == {**ELSE['ops'], 'conv1': ['kxk', '1x1']}
    # a file with blocks always says it all
    assert ops([*block, f'{OP}.weight', f'{OTHER}.weight']) == {'conv1': ['kxk', '1x1']}
