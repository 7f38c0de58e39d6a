"""Counts of MACs and parameters are those of the paper's tables."""
import io

import pytest
import torch
from mmengine.config import Config
from rich.console import Console
from torch import nn

from mmdyrep import DyRepBackbone
from mmdyrep.analysis.complexity import COUNTED, as_json, branches_text, complexity, print_table
from mmdyrep.analysis.uncounted import uncounted
from mmdyrep.engine.report import human
from mmdyrep.fileio import write_json


def resnet(depth, **wrapper):
    backbone = dict(type='ResNet', depth=depth, num_stages=4, out_indices=(3, ), style='pytorch')
    if wrapper:
        backbone = dict(type='DyRepBackbone', backbone=backbone, exclude=('conv1', ), **wrapper)
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=512 if depth < 50 else 2048)
    return config(backbone, head)


def vgg(**wrapper):
    backbone = dict(type='VGG_CIFAR', depth=16)
    if wrapper:
        backbone = dict(type='DyRepBackbone', backbone=backbone, input_shape=(32, 32), **wrapper)
    return config(backbone, dict(type='StackedLinearClsHead', num_classes=10, in_channels=512, mid_channels=[512]))


def config(backbone, head):
    return Config(dict(default_scope='mmpretrain', model=dict(
        type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)))


def small(**wrapper):
    """Three stages of ResNet_CIFAR-18, 4 channels wide, on images of one channel."""
    backbone = dict(type='ResNet_CIFAR', depth=18, in_channels=1, stem_channels=4, base_channels=4, out_indices=(3, ))
    if wrapper:
        backbone = dict(type='DyRepBackbone', backbone=backbone, **wrapper)
    return config(backbone, dict(type='LinearClsHead', num_classes=10, in_channels=32))


# the figures of Tables 2, 3 and 8 to more digits: MACs and parameters of plain, 4 ops, 7 ops (None: not given)
TABLE = {
    'ResNet-18': (lambda **w: resnet(18, **w), None, (1.814e9, 11.69e6), (4.126e9, 26.3e6), (5.244e9, 33.6e6)),
    'ResNet-34': (lambda **w: resnet(34, **w), None, (3.664e9, 21.80e6), (8.442e9, 49.9e6), None),
    'ResNet-50': (lambda **w: resnet(50, **w), None, (4.089e9, 25.56e6), (6.787e9, 40.7e6), (8.020e9, 48.3e6)),
    'VGG-16': (vgg, (32, 32), (313.5e6, 14.99e6), (727.7e6, 34.6e6), (936.5e6, 44.4e6)),
}


@pytest.mark.parametrize(('model', 'space'), [(model, space) for model in TABLE for space in ('dbb', 'dyrep')
                                              if (model, space) != ('ResNet-34', 'dyrep')])
def test_static_networks_cost_what_the_paper_says(model, space):
    make, shape, plain, four, seven = TABLE[model]
    expected = four if space == 'dbb' else seven
    found = complexity(make(space=space, static=True), shape=shape)
    assert found.augmented.macs['model'] == pytest.approx(expected[0], rel=3e-3)
    assert found.augmented.parameters['model'] == pytest.approx(expected[1], rel=3e-3)
    assert found.plain.macs['model'] == pytest.approx(plain[0], rel=3e-3)
    assert found.plain.parameters['model'] == pytest.approx(plain[1], rel=3e-3)


def test_a_plain_config_costs_what_the_wrapped_one_costs_unexpanded():
    plain, wrapped = complexity(resnet(18)), complexity(resnet(18, space='dyrep'))
    assert plain.augmented is None and wrapped.augmented is None
    assert plain.plain == wrapped.plain
    assert plain.plain.parameters['model'] == 11_689_512


def test_rows_add_up_to_the_totals():
    found = complexity(small(static=True), shape=(28, 28))
    for form in (found.plain, found.augmented):
        assert sum(form.op_macs.values()) == form.macs['model'] == form.macs['backbone'] + 320
        assert form.parameters['model'] == form.parameters['backbone'] + 330
    # kxk, 1x1, both of 1x1_kxk, 1x1_avg, 1xk and kx1, each for 4 * 4 channels at 28 * 28 positions
    op = 'backbone.layer1.0.conv1'
    assert found.plain.op_macs[op] == 9 * 16 * 28 * 28
    assert found.augmented.op_macs[op] == (9 + 1 + 10 + 1 + 3 + 3) * 16 * 28 * 28
    assert list(found.plain.op_macs) == list(found.augmented.op_macs)
    # of parameters each of the 7 branches, and the inner pairs of two, have a norm besides
    assert found.plain.op_parameters[op] == 9 * 16
    assert found.augmented.op_parameters[op] == (9 + 1 + 10 + 1 + 3 + 3) * 16 + (7 + 2) * 2 * 4


def test_a_structure_comes_from_json_or_checkpoint_into_a_wrapped_or_plain_config(tmp_path):
    model = DyRepBackbone(dict(type='mmpretrain.ResNet_CIFAR', depth=18, in_channels=1, stem_channels=4,
                               base_channels=4))
    model.expand('layer1.0.conv1', ['1x1', '1x1_kxk'])
    model.expand('layer1.0.conv1.branches.1x1_kxk.conv', ['1x1_avg'])
    json, of_model, of_backbone = tmp_path / 's.json', tmp_path / 'model.pth', tmp_path / 'backbone.pth'
    write_json(json, model.structure)
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in model.state_dict().items()}}, of_model)
    torch.save(model.state_dict(), of_backbone)
    counts = [complexity(cfg, file, (28, 28)) for cfg in (small(), small(space='dyrep')) for file in
              (json, of_model, of_backbone)]
    assert all(count == counts[0] for count in counts)
    assert counts[0].augmented.macs['model'] - counts[0].plain.macs['model'] == (
        # 1x1; 1x1 and KxK, in it 1x1 on the padded map and its average
        16 * 28 * 28 * (1 + 1 + 9) + 16 * 30 * 30)
    assert branches_text('backbone.layer1.0.conv1', counts[0].structure) == 'kxk, 1x1, 1x1_kxk(kxk, 1x1_avg)'


def test_size_of_the_input():
    pipeline = [dict(type='Resize', scale=40), dict(type='RandomCrop', crop_size=28, padding=2),
                dict(type='PackInputs')]
    cropped = small()
    cropped.train_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=pipeline)))
    assert complexity(cropped).shape == (1, 28, 28)
    assert complexity(cropped, shape=(32, 48)).shape == (1, 32, 48)
    assert complexity(small()).shape == (1, 224, 224)
    assert complexity(small(input_shape=(64, 32))).shape == (1, 64, 32)
    with pytest.raises(ValueError, match='H W or C H W'):
        complexity(small(), shape=(32, ))


def test_the_table_has_a_row_per_op_and_a_total():
    found = complexity(small(static=True), shape=(28, 28))
    out = io.StringIO()
    print_table(found, Console(file=out, width=160))
    text = out.getvalue()
    assert all(name in text for name in found.plain.op_macs)
    total = next(line for line in text.splitlines() if 'TOTAL' in line)
    assert all(human(form.macs['model']) in total and human(form.parameters['model']) in total
               for form in (found.plain, found.augmented))
    assert 'one multiply-add once' in text and 'as asked for' in text


def test_json_holds_the_same_counts():
    found = complexity(small(static=True), shape=(28, 28))
    data = as_json(found)
    for kind, form in (('plain', found.plain), ('augmented', found.augmented)):
        assert data['macs'][kind] == form.macs and data['parameters'][kind] == form.parameters
        assert sum(op['macs'][kind] for op in data['ops']) == form.macs['model']
    assert data['shape'] == [1, 28, 28]


def test_it_is_said_what_could_not_be_counted():
    class Odd(nn.Module):

        def __init__(self):
            super().__init__()
            self.conv, self.unused = nn.Conv2d(3, 3, 3), nn.Linear(2, 2)
            self.kernel = nn.Parameter(torch.ones(3, 3, 1, 1))

        def forward(self, x):
            x = self.conv(nn.functional.conv2d(x, self.kernel))
            return x @ x.transpose(2, 3)

    model, x = Odd(), torch.ones(1, 3, 8, 8)
    assert uncounted(model, lambda: model(x), COUNTED) == [
        '1 x conv2d in Odd', '1 x matmul in Odd', 'unused, which the forward does not call']
    assert not model.conv._forward_hooks and not model.conv._forward_pre_hooks
    # a fixed average under dilation is such a convolution
    dilated = nn.Sequential(nn.Conv2d(3, 3, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(3)).eval()
    dilated = DyRepBackbone(dilated, space=['1x1_avg'], static=True)
    assert uncounted(dilated, lambda: dilated(x), COUNTED) == ['1 x conv2d in 0.branches.1x1_avg']


def test_a_config_without_a_model_is_refused():
    with pytest.raises(ValueError, match='has no model'):
        complexity(Config(dict(default_scope='mmpretrain')))
