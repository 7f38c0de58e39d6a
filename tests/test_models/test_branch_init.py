"""`DyRepBackbone(branch_init=...)`: where branches that are there at construction start, and what stays as it was."""
import pytest
import torch
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.reparam import blocks_of
from mmdyrep.reparam.surgery import outer_blocks

from ..backbones import SMALL, difference, images, outputs, plain, unfriendly, wrapped

OP = 'layer1.0.conv2'
STRUCTURE = {'version': 1, 'ops': {OP: ['kxk', '1x1', '1x1_kxk', '1x1_avg'],
                                   f'{OP}.branches.kxk.conv': ['kxk', '1xk', 'residual']}}


def initialized(seed: int = 0, **settings) -> DyRepBackbone:
    torch.manual_seed(seed)
    net = DyRepBackbone(SMALL, **settings)
    net.init_weights()
    return net


@pytest.mark.parametrize('settings', [dict(static=True), dict(structure=STRUCTURE), dict(static=True, keep_norm=False),
                                      dict(static=True, online=True, space='dbb')])
def test_a_split_at_construction_leaves_each_op_the_kernel_that_it_was_drawn_with(settings):
    net = initialized(branch_init='split', **settings).double()
    assert len(outer_blocks(net)) == (1 if 'structure' in settings else len(DyRepBackbone(SMALL).candidates()))
    for name, block in outer_blocks(net).items():
        kernel = block.kernel().weight
        # Kaiming's, as in the plain network: normal, variance 2 / (K * K * C_out)
        fan_out = kernel.shape[0] * kernel.shape[2:].numel()
        assert 0.5 < float(kernel.var() * fan_out / 2) < 1.6, name
        left = block.origin.kernel().weight * block.scale.view(-1, 1, 1, 1)
        given = sum(block.branches[branch].kernel().weight for branch in block.added) * block.scale.view(-1, 1, 1, 1)
        assert torch.allclose(left, kernel - given)
        one = block.branches['1x1'].kernel().weight * block.scale.view(-1, 1, 1, 1)
        assert one.count_nonzero() == one.shape[0] * one.shape[1]
        centre = (..., kernel.shape[2] // 2, kernel.shape[3] // 2)
        assert torch.allclose(one[centre], 0.25 * kernel[centre], atol=0.15 * float(kernel.std()))
    assert torch.isfinite(outputs(net.eval(), images())[0]).all()


def test_a_split_keeps_the_function_of_the_backbone_that_is_given():
    inner = unfriendly(plain(SMALL), 3)
    before = outputs(inner, images())
    assert difference(outputs(DyRepBackbone(inner, static=True, branch_init='split'), images()), before) < 1e-9


@pytest.mark.parametrize('start', ['normal', 'split', dict(type='default', identity=True)])
def test_keys_structure_and_deploy_are_those_of_any_other(start):
    net, other = (unfriendly(wrapped(SMALL, branch_init=setting), 1) for setting in (start, 'default'))
    net.load_structure(STRUCTURE)
    other.load_structure(STRUCTURE)
    assert list(net.state_dict()) == list(other.state_dict()) and net.structure == other.structure
    before = outputs(net, images())
    other.load_state_dict(net.state_dict())
    assert difference(outputs(other, images()), before) == 0
    assert difference(outputs(net.to_plain(), images()), before) < 1e-9


def test_dbb_s_identity_is_there_after_initialization_and_nothing_else_is_changed():
    settings = dict(space='dbb', static=True, keep_norm=False)
    net = initialized(branch_init=dict(type='default', identity=True), **settings)
    usual = initialized(**settings)
    for (name, left), right in zip(net.state_dict().items(), usual.state_dict().values()):
        if '1x1_kxk.conv1' in name:
            assert torch.equal(left, torch.eye(len(left)).view_as(left)) and not torch.equal(left, right), name
        else:
            assert torch.equal(left, right), name


def test_normal_is_drawn_anew_where_the_network_has_another_rule():
    cfg = dict(SMALL, init_cfg=[dict(type='Normal', layer='Conv2d', std=5.0)])
    torch.manual_seed(0)
    net = DyRepBackbone(cfg, static=True, branch_init='normal')
    net.init_weights()
    for block in blocks_of(net).values():
        assert block.origin.conv.weight.std() > 3
        assert all(conv.weight.std() < 2 for name in block.added for conv in block.branches[name].modules()
                   if isinstance(conv, nn.Conv2d))


def test_weights_out_of_a_file_are_left_alone(tmp_path):
    source = unfriendly(DyRepBackbone(SMALL, structure=STRUCTURE), 2)
    torch.save(source.state_dict(), tmp_path / 'augmented.pth')
    net = DyRepBackbone(SMALL, branch_init='split', pretrained=str(tmp_path / 'augmented.pth'))
    net.init_weights()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in source.float().state_dict().items())


def test_an_unknown_start_is_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="unknown initialization of branches 'xavier'"):
        DyRepBackbone(dict(type='NoSuchBackbone'), branch_init='xavier')
