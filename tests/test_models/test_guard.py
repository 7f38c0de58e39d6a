"""No training goes on with parameters that its optimizer does not know."""
import copy
import gc

import pytest
import torch
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmdyrep import DyRepBackbone
from mmdyrep.fileio import write_checkpoint
from mmdyrep.models import guard

from ..backbones import SMALL, classifier, images, wrapped

OP = 'layer1.0.conv2'


def sgd(model, **kwargs):
    return torch.optim.SGD(model.parameters(), lr=.1, **kwargs)


def step(model, optimizer):
    optimizer.zero_grad()
    model(images())[-1].square().mean().backward()
    optimizer.step()


def test_expanded_after_the_optimizer_was_built():
    net = wrapped(SMALL)
    optimizer = sgd(net)
    step(net, optimizer)
    net.expand(OP, ['1x1'])
    before = copy.deepcopy(net.state_dict())
    for _ in range(2):  # not only the first time
        with pytest.raises(RuntimeError, match=rf'5 trainable parameters.*{OP}.branches.kxk.bn.weight.*DyRepHook'):
            step(net, optimizer)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items() if 'num_b' not in key)
    step(net, sgd(net))
    net.remove(OP, '1x1')
    step(net, sgd(net))


@pytest.mark.parametrize('optimizer', [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_every_optimizer_of_torch(optimizer):
    net = wrapped(SMALL)
    optimizer = optimizer(net.parameters())
    net.expand(OP)
    with pytest.raises(RuntimeError, match='not in the optimizer'):
        step(net, optimizer)


def test_fold_whose_convolution_the_optimizer_does_not_know():
    net = wrapped(SMALL, structure={'version': 1, 'ops': {OP: ['kxk', '1x1']}})
    optimizer = sgd(net)
    step(net, optimizer)
    net.switch_to_deploy()
    # the convolution is the same Parameter as in the block
    step(net, optimizer)


def test_all_that_is_right_passes():
    net = wrapped(SMALL, static=True)
    step(net, sgd(net))
    net.expand(f'{OP}.branches.kxk.conv', ['1x1'])
    # another model's optimizer, and a copy as EMA keeps one
    other = wrapped(SMALL)
    step(other, sgd(other))
    step(net, torch.optim.SGD([{'params': [p]} for p in net.parameters()], lr=.1))


def test_frozen_parameters_need_no_optimizer():
    net = wrapped(SMALL)
    net.layer1.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=.1)
    net.expand(OP)
    step(net, optimizer)


def test_guard_keeps_no_model_alive():
    net = wrapped(SMALL)
    net.expand(OP)
    assert net in guard._changed
    del net
    gc.collect()
    assert not list(guard._changed)


# ---------------------------------------------------------------------- in a runner

class Noise(Dataset):
    """Four images with labels."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        from mmpretrain.structures import DataSample
        return dict(inputs=images(batch=1)[0].float(), data_samples=DataSample().set_gt_label(index % 2))


def runner(model, work_dir, name, **kwargs):
    return Runner(
        model.float(), str(work_dir), default_scope='mmpretrain', experiment_name=name, log_level='ERROR',
        train_dataloader=dict(batch_size=2, num_workers=0, dataset=Noise(), sampler=dict(type='DefaultSampler'),
                              collate_fn=dict(type='default_collate')),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)), **kwargs)


@pytest.fixture
def augmented(tmp_path):
    source = classifier().float()
    source.backbone.expand(OP, ['1x1'])
    write_checkpoint(tmp_path / 'augmented.pth', dict(state_dict=source.state_dict(), meta={}))
    return str(tmp_path / 'augmented.pth')


def test_run_that_loads_an_augmented_checkpoint_without_the_hook_ends_before_its_first_step(tmp_path, augmented):
    run = runner(classifier(), tmp_path, 'guarded', load_from=augmented)
    with pytest.raises(RuntimeError, match=r'5 trainable parameters.*pretrained=<the augmented checkpoint>'):
        run.train()
    saved = torch.load(augmented, weights_only=False)['state_dict']
    state = run.model.state_dict()
    assert run.iter == 0 and all(torch.equal(value, state[key]) for key, value in saved.items()
                                 if 'running' not in key and 'num_b' not in key)


@pytest.mark.parametrize('way', ['structure', 'pretrained', 'hook'])
def test_ways_out_that_the_message_names(tmp_path, augmented, way):
    settings, more = {}, dict(load_from=augmented)
    if way == 'structure':
        settings = dict(structure={'version': 1, 'ops': {OP: ['kxk', '1x1']}})
    elif way == 'pretrained':
        settings, more = dict(pretrained=augmented), {}
    else:
        more['custom_hooks'] = [dict(type='DyRepHook', interval=5)]
    run = runner(classifier(**settings), tmp_path, way, **more)
    run.train()
    saved, state = torch.load(augmented, weights_only=False)['state_dict'], run.model.state_dict()
    moved = f'backbone.{OP}.branches.1x1.conv.weight'
    assert run.iter == 2 and not torch.equal(saved[moved], state[moved])
    assert isinstance(run.model.backbone, DyRepBackbone)
