"""The contract of DyRepBackbone on the networks of mmpretrain and torchvision."""
import copy
import pickle
import re
import subprocess
import sys

import pytest
import torch
import torchvision.models as zoo
from mmengine.registry import MODELS
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.reparam import Block

from ..backbones import HRNET, RESNET18, SMALL, difference, images, outputs, plain, unfriendly, wrapped

NETWORKS = {
    'resnet18': RESNET18,
    'resnet50': dict(type='mmpretrain.ResNet', depth=50, stem_channels=8, base_channels=8, out_indices=(1, 3)),
    'vgg': dict(type='mmpretrain.VGG', depth=11, norm_cfg=dict(type='BN')),
    'repvgg': dict(type='mmpretrain.RepVGG', arch=dict(
        num_blocks=[1, 1, 1, 1], width_factor=[.25, .25, .25, .25], group_layer_map=None, se_cfg=None)),
    'mobilenet_v2': dict(type='mmpretrain.MobileNetV2', widen_factor=.25),
    'resnet_cifar': SMALL,
    'hrnet': HRNET,
}
OP = 'layer1.0.conv2'


@pytest.fixture(params=NETWORKS)
def cfg(request):
    return NETWORKS[request.param]


def test_unexpanded_wrapper_has_the_names_order_and_attributes_of_the_plain_backbone(cfg):
    inner, net = plain(cfg), wrapped(cfg)
    assert list(net.state_dict()) == list(inner.state_dict())
    for names in ('named_parameters', 'named_modules', 'named_buffers'):
        assert [name for name, _ in getattr(net, names)()] == [name for name, _ in getattr(inner, names)()]
    assert isinstance(net, type(inner)) and isinstance(net, DyRepBackbone)
    assert type(net).__name__ == 'DyRep' + type(inner).__name__
    assert net.structure == {'version': 1, 'ops': {}}
    for attribute in ('out_indices', 'feat_dim', 'norm_eval'):
        assert getattr(net, attribute, None) == getattr(inner, attribute, None)
    assert difference(outputs(net, images()), outputs(inner, images())) == 0


def test_rep_dep_and_fusing_keep_the_function(cfg):
    net, x = wrapped(cfg), images()
    before, grown = outputs(net, x), net.candidates()[::5]
    for name in grown:
        assert net.expand(name)
    assert list(net.structure['ops']) == grown
    assert difference(outputs(net, x), before) < 1e-9
    net.remove(grown[0], net.structure['ops'][grown[0]][1])
    assert difference(outputs(net, x), before) < 1e-9

    keys = list(net.state_dict())
    fused, twin = net.to_plain(), MODELS.build(cfg).double()
    assert list(net.state_dict()) == keys and type(fused) is type(twin)
    assert not hasattr(fused, '_dyrep')
    twin.load_state_dict(fused.state_dict())
    assert difference(outputs(twin, x), before) < 1e-9

    net.switch_to_deploy()
    assert not any(isinstance(module, Block) for module in net.modules())
    assert difference(outputs(net, x), before) < 1e-9
    net.switch_to_deploy()
    assert difference(outputs(net, x), before) < 1e-9


@pytest.mark.parametrize('name, size', [
    ('resnet18', 32), ('vgg11_bn', 32), ('mobilenet_v2', 32), ('mobilenet_v3_small', 32), ('densenet121', 32),
    ('googlenet', 32), ('inception_v3', 80), ('shufflenet_v2_x0_5', 32), ('efficientnet_b0', 32),
    ('regnet_y_400mf', 32), ('squeezenet1_0', 32), ('alexnet', 64), ('convnext_tiny', 32)])
def test_torchvision_networks_in_place(name, size):
    def build():
        quick = dict(init_weights=False) if name in ('vgg11_bn', 'googlenet', 'inception_v3') else {}
        aux = dict(aux_logits=False) if name in ('googlenet', 'inception_v3') else {}
        return getattr(zoo, name)(**quick, **aux)

    torch.manual_seed(0)
    model = unfriendly(build()).double().eval()
    keys = list(model.state_dict())
    net = DyRepBackbone(model)
    assert net is model and list(net.state_dict()) == keys
    x = images(size)
    before, grown = outputs(net, x), net.candidates()[:4]
    assert grown and all(reason for reason in net.skipped().values())
    for op in grown:
        net.expand(op)
    assert difference(outputs(net, x), before) < 1e-8
    twin = build().double()
    twin.load_state_dict(net.to_plain().state_dict())
    assert difference(outputs(twin, x), before) < 1e-8


def test_densenet_says_why_its_convolutions_are_no_ops():
    net = DyRepBackbone(zoo.densenet121())
    assert net.candidates() == ['features.conv0']
    assert 'no batch norm reads its output' in net.skipped()['features.denseblock1.denselayer1.conv2']
    assert net.skipped()['features.denseblock1.denselayer1.conv1'] == 'kernel 1x1' or \
        'no batch norm' in net.skipped()['features.denseblock1.denselayer1.conv1']


def test_network_without_any_op_says_why():
    net = DyRepBackbone(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1)))
    assert net.candidates() == [] and set(net.skipped()) == {'0', '2'}
    assert '1 x kernel 1x1 (2)' in net.why_none()
    with pytest.raises(ValueError, match='no op can be expanded: .*kernel 1x1'):
        DyRepBackbone(nn.Sequential(nn.Conv2d(4, 4, 1)), static=True)


def test_candidates_of_a_block_lie_within_it_down_to_max_depth():
    net = wrapped(SMALL, max_depth=2)
    plain_ops = net.candidates()
    assert OP in plain_ops and 'layer2.0.downsample.0' in net.skipped()
    net.expand(OP)
    inner = [f'{OP}.branches.kxk.conv', f'{OP}.branches.1x1_kxk.conv']
    place = plain_ops.index(OP)
    assert net.candidates() == plain_ops[:place] + inner + plain_ops[place + 1:]
    before = outputs(net, images())
    for name in inner:
        net.expand(name)
    assert net.candidates() == [name for name in plain_ops if name != OP]
    assert list(net.structure['ops']) == [OP, *inner]
    assert difference(outputs(net, images()), before) < 1e-9
    deep = f'{inner[0]}.branches.kxk.conv'
    assert 'max_depth=2' in net.skipped()[deep]
    with pytest.raises(ValueError, match='max_depth=2'):
        net.expand(deep)

    shallow = wrapped(SMALL, max_depth=1)
    shallow.expand(OP)
    assert shallow.candidates() == [name for name in plain_ops if name != OP]


def test_expand_adds_what_is_missing_and_nothing_twice():
    net = wrapped(SMALL, space='repvgg')
    x, before = images(), outputs(wrapped(SMALL), images())
    assert net.expand(OP, '1x1') == ['1x1']
    assert net.expand(OP) == ['residual']
    state = copy.deepcopy(net.state_dict())
    assert net.expand(OP) == [] == net.expand(OP, ['kxk', '1x1'])
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert net.expand(OP, ['kx1', '1xk']) == ['kx1', '1xk']
    assert net.structure['ops'][OP] == ['kxk', '1x1', '1xk', 'kx1', 'residual']
    assert difference(outputs(net, x), before) < 1e-9


def test_removing_the_last_branch_makes_the_op_plain_again():
    net, keys = wrapped(SMALL), list(plain(SMALL).state_dict())
    before, conv = outputs(net, images()), net.get_submodule(OP)
    net.expand(OP, ['1x1', 'residual'])
    net.expand(f'{OP}.branches.kxk.conv')
    net.remove(OP, '1x1')
    net.remove(OP, ['residual'])
    assert net.get_submodule(OP) is conv and list(net.state_dict()) == keys
    assert difference(outputs(net, images()), before) < 1e-9


@pytest.mark.parametrize('call, message', [
    (lambda net: net.expand('layer9.conv'), 'layer9.conv can not be expanded'),
    (lambda net: net.expand('layer2.0.downsample.0'), 'kernel 1x1'),
    (lambda net: net.expand(OP, ['1x1', '3x3']), "'3x3' is unknown"),
    (lambda net: net.expand('layer2.0.conv1', ['1x1', 'residual']), "'residual' needs equal channels"),
    (lambda net: net.remove(OP, '1x1'), 'is no block'),
    (lambda net: net.remove('layer1.0.conv1', 'kxk'), 'no branch'),
    (lambda net: net.remove('layer1.0.conv1', ['1x1', '1x1_avg']), "no branch .'1x1_avg'."),
    (lambda net: net.remove('layer1.0.conv1', []), 'no branch'),
    (lambda net: net.load_structure({'version': 1, 'ops': {OP: ['kxk', '1x1'], 'layer9': ['kxk', '1x1']}}), 'layer9'),
    (lambda net: net.load_structure({'version': 1, 'ops': {'layer2.0.conv1': ['kxk', 'residual']}}), 'layer2.0.conv1'),
    (lambda net: net.load_structure({'version': 2, 'ops': {}}), 'version 2'),
])
def test_errors_name_the_op_and_leave_the_model_as_it_was(call, message):
    net = wrapped(SMALL)
    net.expand('layer1.0.conv1', ['1x1'])
    state, structure = copy.deepcopy(net.state_dict()), net.structure
    with pytest.raises(ValueError, match=message):
        call(net)
    assert net.structure == structure and list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize('settings, message', [
    (dict(space='dbbb'), "'dbbb'"),
    (dict(space=['1x1', '2x2']), '2x2'),
    (dict(space=['kxk']), 'no branch beside'),
    (dict(gamma_init=0), 'gamma_init'),
    (dict(gamma_init=float('nan')), 'gamma_init'),
    (dict(max_depth=0), 'max_depth'),
    (dict(exclude=('conv_1',)), "'conv_1'.*has no module.*'conv1'"),
    (dict(input_shape=(1, 3, 32, 32)), 'input_shape'),
    (dict(static=True, structure={'version': 1, 'ops': {}}), 'not both'),
    (dict(pretrained='a.pth', init_cfg=dict(type='Pretrained', checkpoint='b.pth')), 'not both'),
    (dict(norm_cfg=dict(type='GN', num_groups=2)), 'norm_cfg must name a batch norm'),
    (dict(norm_cfg=dict(type='BN', track_running_stats=False)), 'running statistics'),
])
def test_wrong_settings_are_refused_before_the_backbone_is_touched(settings, message):
    inner = MODELS.build(SMALL)
    kind = type(inner)
    with pytest.raises(ValueError, match=message):
        DyRepBackbone(inner, **settings)
    assert type(inner) is kind and not hasattr(inner, '_dyrep')


def test_string_as_exclude_and_second_wrapping_are_refused():
    with pytest.raises(TypeError, match=r"exclude=\('conv1',\)"):
        DyRepBackbone(SMALL, exclude='conv1')
    with pytest.raises(ValueError, match='wrapped by DyRepBackbone already'):
        DyRepBackbone(dict(type='DyRepBackbone', backbone=SMALL))
    with pytest.raises(ValueError, match='already'):
        DyRepBackbone(DyRepBackbone(SMALL))


@pytest.mark.parametrize('expanded', [False, True])
def test_pickles_copies_and_prints(expanded):
    net, x = wrapped(SMALL), images()
    if expanded:
        net.expand(OP)
        net.expand(f'{OP}.branches.kxk.conv', ['1x1'])
    before = outputs(net, x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(other) is type(net) and other.structure == net.structure
        assert other.candidates() == net.candidates()
        assert torch.equal(outputs(other, x)[0], before[0])
        assert not {id(parameter) for parameter in other.parameters()} & {id(p) for p in net.parameters()}
        other.expand('layer1.1.conv1')
        other.load_state_dict(net.state_dict())
        assert other.structure == net.structure
    assert 'layer1.1.conv1' not in net.structure['ops']
    text = repr(net)
    assert text.startswith('DyRepResNet_CIFAR(') and ('(conv2): Block(' in text) == expanded


def test_pickle_opens_in_another_process(tmp_path):
    net = wrapped(SMALL)
    net.expand(OP, ['1x1'])
    torch.save(net, tmp_path / 'net.pth')
    code = ('import sys, torch; net = torch.load(sys.argv[1], weights_only=False); '
            'print(type(net).__name__, net.structure["ops"], net.expand("conv1")[0])')
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'net.pth')], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('\n')[-2] == f"DyRepResNet_CIFAR {{'{OP}': ['kxk', '1x1']}} 1x1"


def test_probe_leaves_modes_buffers_and_random_state_alone():
    net = DyRepBackbone(unfriendly(MODELS.build(SMALL)))
    net.train()
    net.layer1.eval()
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert net.candidates()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training and net.layer2.training and not net.layer1.training


def test_repvgg_is_fused_to_its_own_deploy_form():
    cfg = NETWORKS['repvgg']
    net, x = wrapped(cfg), images()
    before = outputs(net, x)
    net.expand('stage_1.0.branch_3x3.conv')
    net.switch_to_deploy()
    twin = MODELS.build(dict(cfg, deploy=True)).double()
    twin.load_state_dict(net.state_dict())
    assert difference(outputs(twin, x), before) < 1e-9
    assert net.candidates() == [] and net.to_plain().deploy
    with pytest.raises(ValueError, match='can not be expanded'):
        net.expand('stage_1.0.branch_3x3.conv')
    augmented = wrapped(cfg)
    augmented.expand('stage_1.0.branch_3x3.conv')
    with pytest.raises(ValueError, match='deploy form'):
        net.load_state_dict(augmented.state_dict())


def test_gradients_reach_every_parameter_of_every_branch():
    net = DyRepBackbone(SMALL)
    for name in ('conv1', OP, f'{OP}.branches.kxk.conv'):
        net.expand(name)
    net.train()
    net(images().float())[0].square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    # what an inner norm adds is taken out by the norm behind it
    without = [name for name, p in net.named_parameters() if not p.grad.abs().sum() > 0]
    assert without == [name for name, _ in net.named_parameters() if re.search(r'branches\.\w+\.bn1\.bias$', name)]
