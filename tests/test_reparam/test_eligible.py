"""Which convolutions may be expanded, and the reason for each that may not."""
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from mmdyrep.reparam import Geometry, fitting, probe, survey

X = torch.zeros(1, 4, 9, 9)


def found(*modules: nn.Module):
    net = nn.Sequential(*modules)
    return survey(net, probe(net, X))


def conv(**kwargs) -> nn.Conv2d:
    return nn.Conv2d(4, 4, **{'kernel_size': 3, 'padding': 1, 'bias': False, **kwargs})


class Standardized(nn.Conv2d):

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Renamed(nn.Conv2d):
    """A plain convolution under another name."""


class Scaled(nn.Conv2d):

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(2 * x, weight, bias)


REFUSED = {
    'kernel 1x1': (lambda: conv(kernel_size=1), 'kernel 1x1'),
    'kernel 1x3': (lambda: conv(kernel_size=(1, 3)), 'kernel 1x3'),
    'kernel 3x1': (lambda: conv(kernel_size=(3, 1)), 'kernel 3x1'),
    'padding mode': (lambda: conv(padding_mode='reflect'), "padding_mode 'reflect'"),
    'one-sided padding': (lambda: conv(kernel_size=4, padding='same'), 'one side more'),
    'own forward': (lambda: Standardized(4, 4, 3, bias=False), 'Standardized is more than a plain'),
    'own convolution': (lambda: Scaled(4, 4, 3, bias=False), 'Scaled is more than a plain'),
    'spectral norm': (lambda: parametrizations.spectral_norm(conv()), 'computed from other parameters'),
    'weight norm': (lambda: weight_norm(conv()), 'computed from other parameters'),
    'pruned': (lambda: prune.l1_unstructured(conv(), 'weight', 0.5), 'computed from other parameters'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_more_than_a_plain_convolution_is_skipped_with_a_reason(case):
    make, reason = REFUSED[case]
    survey_ = found(make(), nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4))
    assert reason in survey_.reasons['0']
    assert survey_.ops == {'2': '3'}


def test_looking_at_parametrized_weights_changes_nothing():
    net = nn.Sequential(*(module for _ in range(4) for module in (
        parametrizations.spectral_norm(conv()), nn.BatchNorm2d(4)))).train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    assert len(survey(net, probe(net, X)).reasons) == 4
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize('kwargs', [
    {}, dict(stride=2), dict(groups=2), dict(groups=4), dict(dilation=2), dict(kernel_size=2), dict(kernel_size=(3, 5)),
    dict(padding='same'), dict(padding='valid'), dict(padding=(2, 0)), dict(kernel_size=7)])
def test_any_plain_convolution_in_front_of_a_norm_is_an_op_that_some_branch_fits(kwargs):
    survey_ = found(conv(**kwargs), nn.BatchNorm2d(4))
    assert survey_.ops == {'0': '1'} and not survey_.reasons
    assert {'1x1_kxk', '1x1_avg'} <= set(fitting(['kxk', '1x1_kxk', '1x1_avg'], Geometry.of(conv(**kwargs))))


def test_a_subclass_that_changes_nothing_is_plain():
    assert found(Renamed(4, 4, 3, bias=False), nn.BatchNorm2d(4)).ops == {'0': '1'}


@pytest.mark.parametrize('norm', [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_batch_norms_of_all_kinds_take_up_the_bias(norm):
    assert found(conv(), norm(4)).ops == {'0': '1'}


def test_a_convolution_needs_a_place_for_its_bias():
    survey_ = found(conv(), nn.GroupNorm(2, 4), conv(bias=True), nn.ReLU(), conv())
    assert survey_.ops == {'2': None}
    assert set(survey_.reasons) == {'0', '4'}
    assert all('no bias of its own' in reason for reason in survey_.reasons.values())


def test_a_norm_without_statistics_takes_up_nothing_but_a_bias_of_its_own_serves():
    survey_ = found(conv(), nn.BatchNorm2d(4, track_running_stats=False),
                    conv(bias=True), nn.BatchNorm2d(4, track_running_stats=False))
    assert 'keeps no running statistics' in survey_.reasons['0']
    assert survey_.ops == {'2': None}


def test_what_is_used_more_than_once_is_skipped():
    shared, norm = conv(), nn.BatchNorm2d(4)
    tied = conv()
    tied.weight = shared.weight
    survey_ = found(shared, nn.BatchNorm2d(4), tied, nn.BatchNorm2d(4), conv(), norm, conv(), norm,
                    conv(bias=True), norm)
    assert survey_.reasons['0'] == 'shares its weight with 2' and survey_.reasons['2'] == 'shares its weight with 0'
    assert '5, has several inputs' in survey_.reasons['4'] and '5, has several inputs' in survey_.reasons['6']
    assert survey_.ops == {'8': None}
    again = conv()
    again_survey = found(again, nn.BatchNorm2d(4), again)
    assert not again_survey.ops
    assert 'shares its weight' in again_survey.reasons['0'] or 'called 2 times' in again_survey.reasons['0']


def test_ops_stand_in_the_order_of_the_network():
    modules = [module for _ in range(6) for module in (conv(), nn.BatchNorm2d(4))]
    assert list(found(*modules).ops) == ['0', '2', '4', '6', '8', '10']
