"""Blocks without the norm behind them, as DBB and RepVGG have it: `DyRepBackbone(keep_norm=False)`."""
import copy
import pickle
from typing import Any

import pytest
import torch
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn

from mmdyrep import DyRepBackbone
from mmdyrep.fileio import write_checkpoint
from mmdyrep.models.upkeep import leaves_out
from mmdyrep.reparam import Block
from mmdyrep.reparam.left_out import is_left_out

from ..backbones import SMALL, difference, images, outputs, plain, unfriendly

OP, NORM = 'layer1.0.conv2', 'layer1.0.bn2'


def static(seed: int = 0, **settings: Any) -> DyRepBackbone:
    torch.manual_seed(seed)
    model = DyRepBackbone(unfriendly(plain(SMALL, seed), seed), space='dbb', static=True, **settings).double()
    # branches that have been trained, norms behind that have not
    for name, block in outer(model).items():
        unfriendly(block, seed + len(name))
    return model.eval()


def outer(model: nn.Module) -> dict:
    return {name: module for name, module in model.named_modules() if isinstance(module, Block)}


def behind(model: DyRepBackbone) -> dict:
    return {name: model.norm_behind(name) for name in outer(model)}


def by_torch(model: nn.Module, state: dict) -> None:
    model.load_state_dict(state, strict=True)


def by_mmengine(model: nn.Module, state: dict) -> None:
    load_state_dict(model, state, strict=True)


LOADERS = pytest.mark.parametrize('load', [by_torch, by_mmengine])


@pytest.mark.parametrize('training', [False, True])
def test_the_norm_behind_a_block_is_not_applied(training: bool) -> None:
    model = static(keep_norm=False).train(training)
    reference = copy.deepcopy(model)
    for name in outer(reference):
        norm = model.survey.ops[name]
        parent, _, child = norm.rpartition('.')
        setattr(reference.get_submodule(parent), child, nn.Identity())
    # of the class that does not look for its norms
    reference.__class__ = type(plain(SMALL))
    x = images().double()
    seen = {}
    model.get_submodule(NORM).register_forward_hook(lambda module, args, output: seen.update(out=output))
    model.get_submodule(OP).register_forward_hook(lambda module, args, output: seen.update(block=output))
    assert difference(model(x), reference(x)) == 0
    assert torch.equal(seen['out'], seen['block'])
    # the kept variant does something else in training
    assert len(behind(model)) == len(outer(model)) > 8 and all(map(is_left_out, behind(model).values()))
    assert not any(map(is_left_out, behind(static()).values()))


def test_wrapping_keeps_the_function_and_the_keys() -> None:
    source = unfriendly(plain(SMALL)).double()
    x = images().double()
    before = outputs(source, x)
    kept = DyRepBackbone(copy.deepcopy(source), space='dbb', static=True)
    left = DyRepBackbone(source, space='dbb', static=True, keep_norm=False)
    assert difference(outputs(left, x), before) < 1e-9
    assert list(left.state_dict()) == list(kept.state_dict())
    assert [name for name, _ in left.named_parameters()] == [name for name, _ in kept.named_parameters()]
    assert difference(outputs(left, x), outputs(kept, x)) < 1e-9


def step(model: nn.Module, number: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    model.train()
    for _ in range(number):
        optimizer.zero_grad()
        sum(out.square().mean() for out in model(images().double())).backward()
        optimizer.step()


def test_fused_it_is_the_plain_network_with_its_norms() -> None:
    model = static(keep_norm=False)
    step(model)
    x = images().double()
    expected = outputs(model, x)
    fused = model.to_plain()
    assert type(fused) is type(plain(SMALL)) and not any(map(is_left_out, fused.modules()))
    assert difference(outputs(fused, x), expected) < 1e-9
    twin = plain(SMALL, 7).double()
    twin.load_state_dict(fused.state_dict(), strict=True)
    assert difference(outputs(twin, x), expected) < 1e-9
    assert all(parameter.requires_grad for parameter in fused.parameters())
    # and the model itself is as it was
    assert all(map(is_left_out, behind(model).values())) and difference(outputs(model, x), expected) == 0
    model.switch_to_deploy()
    assert difference(outputs(model, x), expected) < 1e-9 and not any(map(is_left_out, model.modules()))


@LOADERS
@pytest.mark.parametrize('keep_norm', [False, True])
def test_a_plain_checkpoint_keeps_its_function(load: Any, keep_norm: bool) -> None:
    source = unfriendly(plain(SMALL), 5).double()
    state = copy.deepcopy(source.state_dict())
    model = static(keep_norm=keep_norm)
    load(model, state)
    x = images().double()
    assert difference(outputs(model, x), outputs(source, x)) < 1e-9
    assert len(outer(model)) > 8
    # the file is left as it was
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in state.items())


@LOADERS
@pytest.mark.parametrize('first, second', [(True, False), (False, True), (False, False)])
def test_an_augmented_checkpoint_keeps_its_function_with_either_setting(load: Any, first: bool, second: bool) -> None:
    source = static(1, keep_norm=first)
    if first:
        for norm in behind(source).values():
            unfriendly(norm, 9)
    model = static(2, keep_norm=second)
    state = copy.deepcopy(source.state_dict())
    load(model, copy.deepcopy(state))
    x = images().double()
    # as it is, without a call of train() or eval()
    assert not model.training and difference(model(x), outputs(source, x)) < 1e-9
    assert difference(outputs(model, x), outputs(source, x)) < 1e-9
    # an unexpanded model, too
    bare = DyRepBackbone(plain(SMALL, 3)).double()
    load(bare, copy.deepcopy(state))
    assert difference(outputs(bare, x), outputs(source, x)) < 1e-9
    if not first and not second:
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_saving_and_loading_in_float32_changes_no_bit() -> None:
    model = static(keep_norm=False).float()
    state = copy.deepcopy(model.state_dict())
    for _ in range(3):
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        model.train()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_pretrained_file_keeps_its_function(tmp_path: Any) -> None:
    source = unfriendly(plain(SMALL), 5).float()
    write_checkpoint(tmp_path / 'plain.pth', dict(state_dict=source.state_dict()))
    model = DyRepBackbone(SMALL, space='dbb', static=True, keep_norm=False, pretrained=str(tmp_path / 'plain.pth'))
    model.init_weights()
    x = images().float()
    assert difference(outputs(model, x), outputs(source, x)) < 1e-4
    assert all(map(is_left_out, behind(model).values()))


def test_nothing_of_it_learns_and_the_rest_does() -> None:
    model = static(keep_norm=False)
    before = copy.deepcopy(model.state_dict())
    step(model)
    names = [norm for name, norm in model.survey.ops.items() if name in outer(model)]
    for name, value in model.state_dict().items():
        of_norm = name.rpartition('.')[0] in names
        assert torch.equal(value, before[name]) == (of_norm or name.endswith('.scale')), name
    assert not any(parameter.requires_grad for norm in behind(model).values() for parameter in norm.parameters())
    # every parameter that may learn gets a gradient: parallel wrappers wait for them
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize('zero', [False, True])
def test_initial_weights_are_those_of_the_norm_behind(zero: bool) -> None:
    cfg = dict(type='mmpretrain.ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4, zero_init_residual=zero)
    model = DyRepBackbone(cfg, space='dbb', static=True, keep_norm=False, input_shape=(32, 32))
    model.init_weights()
    for name, block in outer(model).items():
        # DBB starts with 1; the last norm of a residual path may start with 0
        wanted = 0.0 if zero and name.endswith('conv2') else 1.0
        for branch in block.branches.values():
            torch.testing.assert_close(branch.bn.weight, torch.full_like(branch.bn.weight, wanted))
        norm = model.norm_behind(name)
        assert torch.equal(norm.weight, torch.ones_like(norm.weight)) and is_left_out(norm)
        assert torch.allclose(norm.running_var + norm.eps, torch.ones_like(norm.running_var))


def test_a_block_that_is_removed_gets_its_norm_back() -> None:
    model = static(keep_norm=False)
    x, norm = images().double(), model.norm_behind(OP)
    expected = outputs(model, x)
    model.remove(OP, ['1x1'])
    assert is_left_out(norm)
    model.remove(OP, ['1x1_kxk', '1x1_avg'])
    assert not is_left_out(norm) and norm.weight.requires_grad
    assert difference(outputs(model, x), expected) < 1e-9
    model.train()
    sum(out.square().mean() for out in model(x)).backward()
    assert norm.weight.grad is not None
    model.expand(OP)
    assert is_left_out(norm) and not norm.weight.requires_grad
    # training has changed statistics meanwhile
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    after = outputs(model, x)
    model.expand(f'{OP}.branches.kxk.conv', ['1x1'])
    assert difference(outputs(model, x), after) < 1e-9


def test_a_norm_that_is_converted_stays_left_out() -> None:
    model = static(keep_norm=False)
    before = copy.deepcopy(model.train().state_dict())
    converted = convert_sync_batchnorm(model, 'torch')
    assert not any(map(is_left_out, behind(converted).values()))
    x = images().double()
    # without a call of train(), as in a loop by iterations
    converted(x)
    assert all(map(is_left_out, behind(converted).values()))
    assert all(torch.equal(converted.state_dict()[f'{norm}.{key}'], before[f'{norm}.{key}'])
               for norm in (NORM, 'bn1') for key in ('weight', 'running_mean', 'running_var'))


def test_copies_leave_it_out_too() -> None:
    model, x = static(keep_norm=False), images().double()
    model.train()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(map(is_left_out, behind(twin).values()))
        assert difference(twin(x), copy.deepcopy(model)(x)) == 0


class Activated(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def test_settings_that_can_not_be_are_refused() -> None:
    with pytest.raises(ValueError, match='give static=True or a structure with it'):
        DyRepBackbone(SMALL, keep_norm=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), Activated(4))
    with pytest.raises(ValueError, match='(Activated.*can not be left out)|(no op can be expanded)'):
        DyRepBackbone(model, static=True, keep_norm=False, input_shape=(8, 8))
    # an op with a bias and no norm behind has nothing to leave out
    biased = DyRepBackbone(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), static=True, keep_norm=False,
                           input_shape=(8, 8))
    assert not leaves_out(biased, '0') and biased.structure['ops']


def test_it_can_be_given_in_a_config() -> None:
    model = MODELS.build(dict(type='DyRepBackbone', backbone=SMALL, keep_norm=False, structure=dict(
        version=1, ops={OP: ['kxk', '1x1']})))
    assert is_left_out(model.norm_behind(OP)) and leaves_out(model, OP)
    assert sum(map(is_left_out, model.modules())) == 1
