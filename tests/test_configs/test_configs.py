"""Configs build, twins differ in the method alone, and what is trained is what the paper trains."""
import re

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS
from mmpretrain.models import RepVGG
from mmpretrain.registry import TRANSFORMS

from mmdyrep import DyRepBackbone, DyRepHook, RepNASHook
from mmdyrep.models.building import build_model
from mmdyrep.models.finding import find_backbone
from mmdyrep.models.upkeep import leaves_out
from tests.configs import CONFIGS, all_configs, differing, read

PSP = '4xb2-40k_cityscapes-512x1024.py'
# plain config: all that are to be the same but for the method
TWINS = {
    **{f'plain/{model}_8xb32-plain_in1k.py': [f'dyrep/{model}_8xb32_in1k.py', f'dbb/{model}_8xb32-{static}_in1k.py']
       for model, static in [('resnet18', 'dbb'), ('resnet34', 'dbb'), ('resnet50', 'dbb'), ('resnetv1c50', 'dbb'),
                             ('mobilenet-v1', 'dbb'), ('repvgg-A2', 'repvgg'), ('repvgg-B2g4', 'repvgg'),
                             ('repvgg-B3', 'repvgg')]},
    **{f'plain/vgg16_1xb128-plain_{data}.py': [f'dyrep/vgg16_1xb128_{data}.py', f'dbb/vgg16_1xb128-dbb_{data}.py']
       for data in ('cifar10', 'cifar100')},
    'detection/faster-rcnn_r50_fpn_1x_coco.py': [
        f'detection/faster-rcnn_r50-{stage}_fpn_1x_coco.py' for stage in ('dbb-c', 'dyrep-c', 'dyrep-d', 'dyrep-cd')],
    **{f'segmentation/pspnet_{net}-d8_{PSP}': [
        f'segmentation/pspnet_{net}-d8-{stage}_{PSP}' for stage in ('dbb-c', 'dyrep-c', 'dyrep-d', 'dyrep-cd')]
       for net in ('r50', 'r50b')},
}
TWINS['plain/repvgg-A2_8xb32-plain_in1k.py'].append('dyrep/repvgg-A2-branches_8xb32_in1k.py')
TWINS['plain/resnet50_8xb32-plain_in1k.py'].append('dbb/resnet50_8xb32-dbb-7ops_in1k.py')
TWINS['plain/resnet18_8xb32-plain_in1k.py'].append('dbb/resnet18_8xb32-dbb-norm_in1k.py')
TWINS['plain/vgg16_1xb128-plain_cifar10.py'].append('dbb/vgg16_1xb128-dbb-norm_cifar10.py')
for arch in ('A2', 'B3'):
    TWINS[f'plain/repvgg-{arch}_8xb32-plain_in1k.py'].append(f'dbb/repvgg-{arch}_8xb32-odbb_in1k.py')
PAIRS = [(plain, twin) for plain, twins in TWINS.items() for twin in twins]
OURS = [name for name in all_configs() if not name.startswith('small/')]


def is_dyrep(name: str) -> bool:
    return name.startswith('dyrep/') or name.endswith(PSP) and '-dyrep-' in name and '-dyrep-c_' not in name or (
        name.startswith('detection/') and ('-dyrep-d_' in name or '-dyrep-cd_' in name))


def test_every_config_has_a_twin_and_a_name_of_its_own():
    assert sorted([*TWINS, *(twin for twins in TWINS.values() for twin in twins)]) == OURS
    # the name is the work dir of a run
    names = [name.split('/')[-1] for name in all_configs()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('name', [
    # each op of these is tried on a copy
    pytest.param(name, marks=[pytest.mark.slow] * (name.startswith('dyrep/') and '-B' in name)) for name in OURS])
def test_builds_with_the_structure_that_its_folder_promises(name):
    cfg = read(name)
    model = build_model(cfg)
    hooks = cfg.default_hooks
    assert hooks.random_state.type == 'RandomStateHook' and cfg.randomness.seed is not None
    assert ('dyrep' in hooks) == is_dyrep(name)
    if is_dyrep(name):
        hook = HOOKS.build(hooks.dyrep)
        assert isinstance(hook, DyRepHook) and hook.by_epoch == (cfg.train_cfg.get('type') != 'IterBasedTrainLoop')
        assert 5 <= (cfg.train_cfg.max_epochs if hook.by_epoch else cfg.train_cfg.max_iters) / hook.interval <= 40
        _, backbone = find_backbone(model)
        assert not backbone.structure['ops']
        assert backbone.candidates()
    elif 'odbb' in name:
        hook, epochs = HOOKS.build(hooks.repnas), cfg.train_cfg.max_epochs
        assert isinstance(hook, RepNASHook) and hook.by_epoch
        # 15 and 35 of 150 epochs
        assert hook.warmup == round(epochs * 15 / 150) and hook.search == round(epochs * 35 / 150)
        _, backbone = find_backbone(model)
        ops = backbone.structure['ops']
        assert list(ops) == list(backbone.survey.ops) and all(leaves_out(backbone, op) for op in ops)
        assert {branch for branches in ops.values() for branch in branches} == {*backbone.space} and len(
            backbone.space) == 7
    elif name.startswith('dbb/') and 'repvgg' not in name:
        _, backbone = find_backbone(model)
        plain = MODELS.build(cfg.model.backbone.backbone)
        assert list(backbone.structure['ops']) == [
            conv for conv, module in plain.named_modules() if isinstance(module, torch.nn.Conv2d)
            and module.kernel_size == (3, 3) and not ('resnet' in name and conv.startswith('stem'))]
        # DBB has no norm behind its blocks
        assert all(leaves_out(backbone, op) == ('-norm' not in name) for op in backbone.structure['ops'])
        # and its 1x1_kxk starts as the identity
        firsts = [module for key, module in backbone.named_modules() if key.endswith('1x1_kxk.conv1')]
        assert len(firsts) == len(backbone.structure['ops'])
        assert all(torch.equal(first.weight, torch.nn.init.dirac_(torch.empty_like(first.weight), first.groups))
                   for first in firsts)
        most = max(backbone.structure['ops'].values(), key=len)
        assert most == ['kxk', '1x1', '1x1_kxk', '1x1_avg', *(['1xk', 'kx1', 'residual'] if '7ops' in name else [])]
    else:
        assert not any(isinstance(module, DyRepBackbone) for module in model.modules())


@pytest.mark.parametrize(('plain', 'twin'), PAIRS)
def test_twins_differ_in_the_method_alone(plain, twin):
    left, right = read(plain).to_dict(), read(twin).to_dict()
    if is_dyrep(twin):
        hook = right['default_hooks'].pop('dyrep')
        assert hook['metric'] == 'synflow' and hook['dep'] == {'threshold': 0.02} and hook['num_grow'] == 1
    if 'odbb' in twin:
        hook = right['default_hooks'].pop('repnas')
        assert set(hook) == {'type', 'warmup', 'search'}
    right.pop('pretrained', None)
    backbone = right['model']['backbone']
    if backbone['type'] == 'DyRepBackbone':
        assert set(backbone) <= {'type', 'backbone', 'space', 'static', 'keep_norm', 'branch_init', 'exclude',
                                 'input_shape', 'pretrained'}
        right['model']['backbone'] = backbone = backbone['backbone']
    if backbone['type'] == 'RepVGG':
        backbone['type'] = 'RepVGGPlain'
    # what a stage of Table 5 starts from
    start = {'model.pretrained', 'model.backbone.init_cfg.checkpoint'} if re.search('-c_|-cd_', twin) else set()
    assert set(differing(left, right)) <= start


def test_a_difference_of_twins_would_be_seen():
    left = read('plain/resnet18_8xb32-plain_in1k.py').to_dict()
    right = Config(left).copy().to_dict()
    right['optim_wrapper']['optimizer']['weight_decay'] = 4e-5
    right['train_dataloader']['dataset']['pipeline'][3]['hue'] = 0.1
    del right['default_hooks']['random_state']
    assert differing(left, right) == [
        'default_hooks.random_state.type', 'optim_wrapper.optimizer.weight_decay',
        'train_dataloader.dataset.pipeline[3].hue']


@pytest.mark.parametrize(('name', 'epochs', 'interval', 'decay', 'batch'), [
    ('resnet18_8xb32_in1k', 120, 5, 1e-4, 32), ('resnet34_8xb32_in1k', 120, 5, 1e-4, 32),
    ('resnet50_8xb32_in1k', 120, 5, 1e-4, 32), ('resnetv1c50_8xb32_in1k', 120, 5, 1e-4, 32),
    ('mobilenet-v1_8xb32_in1k', 90, 5, 4e-5, 32), ('repvgg-A2_8xb32_in1k', 120, 5, 1e-4, 32),
    ('repvgg-B2g4_8xb32_in1k', 200, 5, 1e-4, 32), ('repvgg-B3_8xb32_in1k', 200, 5, 1e-4, 32),
    ('vgg16_1xb128_cifar10', 600, 15, 1e-4, 128), ('vgg16_1xb128_cifar100', 600, 15, 1e-4, 128)])
def test_recipe_of_section_5_1(name, epochs, interval, decay, batch):
    cfg = read(f'dyrep/{name}.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ('SGD', 0.1, 0.9, decay)
    strong = 'B2g4' in name or 'B3' in name
    *before, scheduler = cfg.param_scheduler if strong else [cfg.param_scheduler]
    warm = sum(part.end - part.begin for part in before)
    assert (scheduler.type, scheduler.T_max, scheduler.get('begin', 0), scheduler.end, scheduler.get('eta_min', 0)) == (
        'CosineAnnealingLR', epochs - warm, warm, epochs, 0)
    assert cfg.train_cfg.max_epochs == epochs and cfg.default_hooks.dyrep.interval == interval
    assert cfg.train_dataloader.batch_size == batch
    # 8 GPUs of 32, or one of 128
    assert cfg.auto_scale_lr.base_batch_size == {32: 256, 128: 128}[batch]
    augmentations = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert ('AutoAugment' in augmentations) == strong
    assert ('ColorJitter' in augmentations) == name.startswith(('resnet', 'mobilenet'))
    assert cfg.model.head.loss.type == ('LabelSmoothLoss' if strong else 'CrossEntropyLoss')
    # no mixup is said to be used
    assert not cfg.model.get('train_cfg')
    assert cfg.model.head.num_classes == {'in1k': 1000, 'cifar10': 10, 'cifar100': 100}[name.split('_')[-1]]


@pytest.mark.parametrize(('name', 'end'), [
    ('resnet18_8xb32_in1k', 100), ('resnet34_8xb32_in1k', 100), ('resnet50_8xb32_in1k', 100),
    ('resnetv1c50_8xb32_in1k', 100), ('mobilenet-v1_8xb32_in1k', 70), ('repvgg-A2_8xb32_in1k', 100),
    ('repvgg-A2-branches_8xb32_in1k', 100), ('repvgg-B2g4_8xb32_in1k', 100), ('repvgg-B3_8xb32_in1k', 100),
    ('vgg16_1xb128_cifar10', 500), ('vgg16_1xb128_cifar100', 500)])
def test_where_the_paper_is_silent_the_recipe_is_the_authors(name, end):
    cfg = read(f'dyrep/{name}.py')
    assert HOOKS.build(cfg.default_hooks.dyrep).end == end
    pipeline = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    if 'cifar' in name:
        assert pipeline['Cutout'].shape == 16 and pipeline['Cutout'].prob == 1
        assert pipeline['Cutout'].pad_val == [round(value) for value in cfg.data_preprocessor.mean]
        assert not cfg.optim_wrapper.optimizer.get('nesterov') and 'paramwise_cfg' not in cfg.optim_wrapper
        return
    assert cfg.optim_wrapper.optimizer.nesterov
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    if 'ColorJitter' in pipeline:
        assert [pipeline['ColorJitter'][part] for part in ('brightness', 'contrast', 'saturation')] == [0.06] * 3
    strong = 'B2g4' in name or 'B3' in name
    assert ('RandomErasing' in pipeline) == strong == isinstance(cfg.param_scheduler, list)
    if strong:
        assert list(pipeline)[-2] == 'RandomErasing' and pipeline['RandomErasing'].erase_prob == 0.2
        assert (cfg.param_scheduler[0].type, cfg.param_scheduler[0].end) == ('LinearLR', 5)


def test_the_settings_named_for_the_authors_recipe_give_it():
    """In the table of docs/paper.md."""
    rows = (CONFIGS.parent / 'docs' / 'paper.md').read_text().splitlines()

    def merged(row: str, config: str) -> Config:
        line, = (line for line in rows if line.startswith(f'| {row} |'))
        options = [option for part in re.findall(r'`([^`]+)`', line) for option in part.split() if '=' in option]
        cfg = read(config).copy()
        cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in
                             (option.split('=', 1) for option in options)})
        return cfg

    cfg = merged('RepVGG-B', 'dyrep/repvgg-B2g4_8xb32_in1k.py')
    step = cfg.train_dataloader.dataset.pipeline[3]
    assert (step.type, step.policies, step.num_policies, step.magnitude_level, step.magnitude_std) == (
        'RandAugment', 'timm_increasing', 2, 9, 0.5)
    image = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8).numpy()
    assert TRANSFORMS.build(step)(dict(img=image))['img'].shape == image.shape
    cfg = merged('new convolutions', 'dyrep/resnet18_8xb32_in1k.py')
    assert type(build_model(cfg).backbone._dyrep.start).__name__ == 'Normal'


def test_a_model_takes_the_preprocessor_that_stands_beside_it():
    cfg = read('dyrep/vgg16_1xb128_cifar10.py')
    assert build_model(cfg).data_preprocessor.mean.flatten().tolist() == pytest.approx(cfg.data_preprocessor.mean)


def test_repvgg_has_no_weight_decay_on_norms_those_of_branches_included():
    cfg = read('dyrep/repvgg-A2_8xb32_in1k.py')
    model = build_model(cfg)
    model.backbone.expand('stage_1.1.branch_3x3.conv')
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper.copy()).optimizer
    decays = {id(group['params'][0]): group['weight_decay'] for group in optimizer.param_groups}
    decayed = {name for name, parameter in model.named_parameters() if decays[id(parameter)]}
    assert decayed == {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    assert 'backbone.stage_1.1.branch_3x3.conv.branches.residual.bn.weight' in dict(model.named_parameters())


def test_repvgg_a2_with_its_own_branches_is_mmpretrain_s_config():
    differences = differing(get_config('mmpretrain::repvgg/repvgg-A2_8xb32_in1k.py'),
                            read('dbb/repvgg-A2_8xb32-repvgg_in1k.py'))
    allowed = ('custom_imports', 'default_hooks.random_state', 'dyrep_hook', 'randomness.seed',
               # the same rule by kind; the cosine by epochs; batches of a test; Nesterov
               'optim_wrapper.paramwise_cfg', 'param_scheduler.convert_to_iter_based', 'val_dataloader.batch_size',
               'test_dataloader.batch_size', 'optim_wrapper.optimizer.nesterov')
    assert [path for path in differences if not path.startswith(allowed)] == []


@pytest.mark.parametrize('start', ['A2', 'A2-branches'])
def test_repvgg_grown_and_fused_is_mmpretrain_s_repvgg_for_deployment(start):
    model = build_model(read(f'dyrep/repvgg-{start}_8xb32_in1k.py')).double()
    assert ('stage_1.1.branch_1x1.conv' in dict(model.backbone.named_modules())) == (start == 'A2-branches')
    ops = [op for op in model.backbone.candidates() if op.startswith('stage_1.1.')]
    assert ops == ['stage_1.1.branch_3x3.conv']
    torch.manual_seed(0)
    model.train()(torch.randn(4, 3, 64, 64, dtype=torch.float64))  # statistics that are not those of new norms
    model.eval()
    model.backbone.expand(ops[0])
    assert len(model.backbone.structure['ops'][ops[0]]) == 7
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        model.backbone.switch_to_deploy()
        cfg = read('dbb/repvgg-A2_8xb32-repvgg_in1k.py').copy()
        cfg.model.backbone.deploy = True
        theirs = build_model(cfg).double().eval()
        assert type(theirs.backbone) is RepVGG
        theirs.load_state_dict(model.state_dict())
        assert (theirs(x) - before).abs().max() < 1e-9 * before.abs().max()


def test_bases_of_the_libraries_are_those_of_the_paper():
    bases = {'detection/faster-rcnn_r50_fpn_1x_coco.py': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
             f'segmentation/pspnet_r50-d8_{PSP}': f'mmseg::pspnet/pspnet_r50-d8_{PSP}'}
    for name, base in bases.items():
        assert f"'{base}'" in (CONFIGS / name).read_text()
        assert differing(get_config(base), read(name)) == [
            'custom_imports.allow_failed_imports', 'custom_imports.imports[0]', 'default_hooks.random_state.type',
            *(f'dyrep_hook.{key}' for key in ('calibration_batches', 'dep.threshold', 'interval', 'metric', 'num_grow',
                                              'type')), 'randomness.seed']
