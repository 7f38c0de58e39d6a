"""tools/wrap_config.py: what it writes trains the same thing with DyRep, or nothing is written."""
import inspect
import os
import re
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import HOOKS

from mmdyrep import DyRepBackbone, DyRepHook, RandomStateHook
from mmdyrep.models.building import build_model
from mmdyrep.models.finding import find_backbone
from mmdyrep.wrapped_config import wrap_config
from tests.configs import ROOT, differing
from tests.dyrep_runs import updates
from tests.runs import DATA, needs_images, run_tool, small_config

LIBRARY = {
    'mmpretrain::resnet/resnet50_8xb32_in1k.py': (True, 4),  # of 100 epochs
    'mmpretrain::repvgg/repvgg-A0_8xb32_in1k.py': (True, 5),
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': (True, 1),
    # custom_hooks: EMA and a change of the pipeline
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': (True, 10),
    # custom_imports, a backbone of another library
    'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py': (True, 2),
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': (False, 2000),
}

NEW_STYLE = '''
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler, default_collate
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.datasets import FashionMNIST, PackInputs
from mmpretrain.models import CrossEntropyLoss, GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet_CIFAR
from torch.optim import SGD

with read_base():
    from .runtime import *

model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(num_classes=10, mean=[72.94], std=[90.02], to_rgb=False),
    backbone=dict(type=ResNet_CIFAR, depth=18, in_channels=1, stem_channels=4, base_channels=4),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=10, in_channels=32, loss=dict(type=CrossEntropyLoss)))
train_dataloader = dict(
    batch_size=8, num_workers=0, collate_fn=default_collate, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=FashionMNIST, data_root=%r, split='train', indices=16, pipeline=[dict(type=PackInputs)]))
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=2)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))
custom_hooks = [dict(type=EMAHook, momentum=0.1)]
''' % str(DATA)
RUNTIME = '''
from mmengine.hooks import CheckpointHook
default_scope = 'mmpretrain'
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1))
'''
NAMES = ('DyRepBackbone', 'DyRepHook', 'RandomStateHook')


def original(source: Any) -> Config:
    return get_config(source) if '::' in str(source) else Config.fromfile(source)


def check(source: Any, out: Path, space: str = 'dyrep', ours: int = 2) -> Config:
    """The written config is the original one, but for what it says: compare them leaf by leaf; build the model."""
    wrapped, plain = Config.fromfile(out).to_dict(), original(source).to_dict()
    for name in NAMES:  # imported into a new-style config
        wrapped.pop(name, None)
    hooks = wrapped['default_hooks']
    added = [hook for name, hook in list(hooks.items()) if name not in (plain.get('default_hooks') or {})
             and hooks.pop(name)]
    assert [hook['type'].split('.')[-1] for hook in added] == ['DyRepHook', 'RandomStateHook'][:ours]
    backbone = wrapped['model'].pop('backbone')
    assert backbone.pop('type').split('.')[-1] == 'DyRepBackbone' and backbone.pop('space', 'dyrep') == space
    assert list(backbone) == ['backbone']
    wrapped['model']['backbone'] = backbone['backbone']
    imports = wrapped.pop('custom_imports', {'imports': ['mmdyrep']})['imports']
    old = plain.pop('custom_imports', {}).get('imports', [])
    old = [old] if isinstance(old, str) else old
    assert imports == (old if 'mmdyrep' in old else [*old, 'mmdyrep'])
    if not plain.get('default_hooks'):
        plain['default_hooks'] = {}
    assert differing(plain, wrapped) == []

    cfg = Config.fromfile(out)
    _, found = find_backbone(build_model(cfg))
    assert isinstance(found, DyRepBackbone) and found.candidates()
    return cfg


@pytest.mark.parametrize('source', LIBRARY)
def test_configs_of_the_libraries(source, tmp_path):
    plan = wrap_config(source, tmp_path / 'new' / 'out.py')
    assert (plan.by_epoch, plan.interval) == LIBRARY[source]
    cfg = check(source, plan.out)
    hook = HOOKS.build(cfg.default_hooks.dyrep)
    assert isinstance(hook, DyRepHook) and (hook.by_epoch, hook.interval) == LIBRARY[source]
    assert isinstance(HOOKS.build(cfg.default_hooks.random_state), RandomStateHook)
    assert os.listdir(plan.out.parent) == ['out.py'] or os.listdir(plan.out.parent) == ['out.py', '__pycache__']


@pytest.mark.parametrize(('source', 'by_epoch', 'interval'), [
    ('mmpretrain::resnet/resnet50_8xb32_in1k.py', True, 7), ('new', True, 1),
    ('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py', False, 3000)])
def test_recommended_settings_are_those_of_the_base_config_early_in_the_training(source, by_epoch, interval, tmp_path):
    if source == 'new':
        source = tmp_path / 'new_style.py'
        source.write_text(NEW_STYLE)
        (tmp_path / 'runtime.py').write_text(RUNTIME)
        (tmp_path / '__init__.py').touch()
    plan = wrap_config(str(source), tmp_path / 'out.py', recommended=True)
    cfg, base = Config.fromfile(plan.out), Config.fromfile(ROOT / 'configs' / '_base_' / 'dyrep_recommended.py')
    hook, backbone = cfg.default_hooks.dyrep.to_dict(), cfg.model.backbone.to_dict()
    expected = dict(base.recommended_hook, interval=interval, end=4 * interval, by_epoch=by_epoch)
    # which of it the hook has by itself
    assert expected.pop('calibration_batches') == inspect.signature(DyRepHook).parameters['calibration_batches'].default
    assert hook.pop('type').split('.')[-1] == expected.pop('type') and hook == expected
    assert {key: backbone[key] for key in base.recommended_backbone} == base.recommended_backbone
    _, found = find_backbone(build_model(cfg))
    assert found.online and found.candidates()


@needs_images
def test_as_a_command_and_trains(tmp_path):
    source, out = tmp_path / 'a folder' / 'plain.py', tmp_path / 'dyrep.py'
    source.parent.mkdir()
    cfg = small_config(images=64)
    cfg.default_hooks.pop('random_state')
    cfg.custom_imports.imports = 'tests.killing'
    cfg.dump(source)
    done = run_tool('wrap_config.py', source, out, '--space', 'dbb', '--interval', '2')
    assert done.returncode == 0, done.stdout
    assert f'written: {out}' in done.stdout and 'every 2 epochs' in done.stdout
    assert check(source, out, 'dbb').custom_imports.imports == ['tests.killing', 'mmdyrep']
    again = run_tool('wrap_config.py', source, out)
    assert again.returncode == 1 and 'exists already' in again.stdout
    done = run_tool('train.py', out, '--work-dir', tmp_path / 'run')
    assert done.returncode == 0, done.stdout[-3000:]
    assert [update['epoch'] for update in updates(tmp_path / 'run')] == [2, 4]
    assert updates(tmp_path / 'run')[0]['grown'][0]['branches'] == ['1x1', '1x1_kxk', '1x1_avg']


@needs_images
@pytest.mark.parametrize('folder', ['configs', 'elsewhere'])
def test_a_new_style_config_gets_one_of_its_style_and_trains(tmp_path, folder):
    # such a config can't be inherited by _base_
    source, out = tmp_path / 'configs' / 'plain.py', tmp_path / folder / 'dyrep.py'
    source.parent.mkdir()
    source.write_text(NEW_STYLE)
    (source.parent / 'runtime.py').write_text(RUNTIME)
    wrap_config(str(source), out)
    assert 'read_base' in out.read_text() and '_base_' not in out.read_text().replace('read_base', '')
    check(source, out)
    if folder == 'configs':
        done = run_tool('train.py', out, '--work-dir', tmp_path / 'run')
        assert done.returncode == 0, done.stdout[-3000:]
        assert [update['epoch'] for update in updates(tmp_path / 'run')] == [1, 2]


def test_a_new_style_config_without_hooks_or_out_of_reach(tmp_path):
    source = tmp_path / 'no-name' / 'plain.py'
    source.parent.mkdir()
    source.write_text(NEW_STYLE.replace('with read_base():\n    from .runtime import *\n',
                                        "default_scope = 'mmpretrain'\n"))
    with pytest.raises(ValueError, match=re.escape(f'Write the new config to {source.parent}')):
        wrap_config(str(source), tmp_path / 'out.py')
    assert os.listdir(tmp_path) == ['no-name']
    plan = wrap_config(str(source), source.parent / 'out.py')
    check(source, plan.out)


def test_a_backbone_that_takes_one_size_only(tmp_path):
    plan = wrap_config('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', tmp_path / 'usual.py')
    assert plan.input_shape is None
    # 256 is what its training pipeline crops to
    plan = wrap_config('mmpretrain::repmlp/repmlp-base_8xb64_in1k-256px.py', tmp_path / 'out.py')
    assert Config.fromfile(plan.out).model.backbone.input_shape == (256, 256) == plan.input_shape
    lenet = 'mmpretrain::lenet/lenet5_mnist.py'
    with pytest.raises(ValueError, match=r'lenet5_mnist.py: .*could not be probed.*input_shape=\(C, H, W\)'):
        wrap_config(lenet, tmp_path / 'lenet.py')
    with pytest.raises(ValueError, match='could not be probed'):
        wrap_config(lenet, tmp_path / 'lenet.py', input_shape=(30, 30))
    plan = wrap_config(lenet, tmp_path / 'lenet.py', input_shape=(1, 32, 32))
    assert build_model(Config.fromfile(plan.out)).backbone.input_shape == (1, 32, 32)


def config(tmp_path: Path, **changes: Any) -> str:
    """A small config in a file, with changes."""
    cfg = small_config(**changes)
    path = tmp_path / 'plain.py'
    cfg.dump(path)
    return str(path)


@pytest.mark.parametrize('hooks', [None, 'taken', 'there'])
def test_hooks_that_are_there_already(tmp_path, hooks):
    source = Path(config(tmp_path))
    cfg = Config.fromfile(source)
    if hooks is None:
        cfg.default_hooks = None
    elif hooks == 'taken':
        cfg.default_hooks = dict(dyrep=dict(type='IterTimerHook'))
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.dump(source)
    plan = wrap_config(str(source), tmp_path / 'out.py')
    written = check(source, plan.out, ours=1 if hooks == 'there' else 2)
    assert [hook.type for hook in written.custom_hooks] == ['EMAHook']
    if hooks == 'taken':
        assert written.default_hooks.dyrep.type == 'IterTimerHook' and written.default_hooks.dyrep_.type == 'DyRepHook'


def test_a_backbone_further_down_and_a_yaml_file(tmp_path):
    cfg = small_config()
    cfg.model = dict(type='ImageClassifier', backbone=cfg.model.backbone, neck=cfg.model.neck, head=cfg.model.head)
    Config(cfg.to_dict()).dump(tmp_path / 'plain.yaml')
    plan = wrap_config(str(tmp_path / 'plain.yaml'), tmp_path / 'out.py')
    assert plan.interval == 1 and find_backbone(build_model(Config.fromfile(plan.out)))[0] == 'backbone'


@pytest.mark.parametrize(('source', 'message'), [
    ('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py', '2 DyRepBackbones'),
    ('mmpretrain::blip/blip-base_8xb32_caption.py', 'no backbone in its model of type BlipCaption'),
    ('mmpretrain::_base_/models/resnet18.py', 'no train_cfg'),
    ('mmpretrain::_base_/default_runtime.py', 'has no model'),
    ('configs/dyrep/resnet18_8xb32_in1k.py', 'wrapped by DyRepBackbone already'),
    ('configs/nothing.py', 'no config at configs/nothing.py'),
    ('mmdet::faster_rcnn/nothing.py', 'nothing.py'),
])
def test_what_can_not_be_wrapped_is_refused_with_the_reason(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        wrap_config(source, tmp_path / 'out.py')
    assert not os.listdir(tmp_path)


def test_changes_that_can_not_be_wrapped_are_refused_with_the_reason(tmp_path):
    cases = [
        (dict(model=dict(backbone=dict(depth=19))), 'does not build as it is .*invalid depth 19|KeyError.*19'),
        (dict(default_hooks=dict(other=dict(type='DyRepHook'))), 'has a DyRepHook already'),
        (dict(train_cfg=dict(type='FlowBasedLoop')), 'trains in FlowBasedLoop'),
        (dict(custom_imports=dict(imports=['no_such_module'])), 'can not be read .*no_such_module'),
    ]
    for changes, message in cases:
        source = config(tmp_path, **changes)
        with pytest.raises(ValueError, match=message):
            wrap_config(source, tmp_path / 'out.py')
    with pytest.raises(ValueError, match='no op of the backbone of .* can be expanded: .*no branch of the space fits'):
        # its one convolution has an even kernel
        wrap_config('mmpretrain::deit/deit-tiny_4xb256_in1k.py', tmp_path / 'out.py', space=['1x1'])
    source = config(tmp_path)
    for options, message in ((dict(space='dbp'), "does not build with a wrapped backbone .*'dbp'"),
                             (dict(interval=0), 'from 1 to the 4 of the training, got 0'),
                             (dict(interval=9), 'from 1 to the 4 of the training, got 9')):
        with pytest.raises(ValueError, match=message):
            wrap_config(source, tmp_path / 'out.py', **options)
    with pytest.raises(ValueError, match='ends in .py'):
        wrap_config(source, tmp_path / 'out.yaml')
    with pytest.raises(ValueError, match='exists already'):
        wrap_config(source, source)
    assert os.listdir(tmp_path) == ['plain.py'] or sorted(os.listdir(tmp_path)) == ['__pycache__', 'plain.py']
