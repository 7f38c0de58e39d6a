"""Metafiles and READMEs of the configs: what they name is there, what they count is right, their commands work."""
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import yaml
from mmengine.config import Config, DictAction
from mmengine.registry import HOOKS

from mmdyrep.analysis.complexity import complexity
from mmdyrep.fileio import write_json
from mmdyrep.models.building import build_model
from tests.configs import CONFIGS, ROOT, all_configs, read
from tests.image_folders import imagenet_folder
from tests.processes import free_port
from tests.runs import needs_images
from tests.test_configs.test_training import classification

METAFILES = sorted(CONFIGS.rglob('metafile.yml'))
READMES = sorted(CONFIGS.rglob('README.md'))
LINK = re.compile(r'\]\(([^)#]+)(?:#[^)]*)?\)')


def models() -> List[Tuple[Path, Dict[str, Any]]]:
    return [(path, model) for path in METAFILES for model in yaml.safe_load(path.read_text())['Models']]


def commands(readme: Path) -> List[List[str]]:
    """Command lines of the bash blocks."""
    blocks = re.findall(r'```bash\n(.*?)```', readme.read_text(), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line and not line.startswith('#')]


def test_every_config_is_in_a_metafile_and_every_path_is_there():
    listed = [model['Config'] for _, model in models()]
    ours = [f'configs/{name}' for name in all_configs() if (CONFIGS / name).parent / 'metafile.yml' in METAFILES]
    assert sorted(listed) == ours and len(ours) > 40
    for path in METAFILES:
        content = yaml.safe_load(path.read_text())
        collections = {collection['Name']: collection for collection in content['Collections']}
        for collection in collections.values():
            assert ROOT / collection['README'] == path.parent / 'README.md' and (ROOT / collection['README']).exists()
            assert (ROOT / collection['Code']['URL']).exists()
        for model in content['Models']:
            assert model['In Collection'] in collections and model['Name'] == Path(model['Config']).stem
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert {ROOT / path for path in index} <= {*METAFILES} and len(index) >= 5


def test_results_are_the_paper_s_and_readme_and_metafile_agree():
    for path, model in models():
        assert 'Results' not in model or 'small' in path.parts, 'nothing has been measured at full size'
        rows = [line for line in (path.parent / 'README.md').read_text().splitlines()
                if f'(./{model["Name"]}.py) |' in line and line.startswith('| [')]
        if 'small' in path.parts:
            continue
        assert f'[{model["Name"]}](./{model["Name"]}.py)' in rows[0]
        for result in model.get('Paper Results', []):
            value, = result['Metrics'].values()
            assert f' {value} ' in rows[0], (model['Name'], value)
        if 'FLOPs' in model['Metadata']:
            assert f'{model["Metadata"]["Parameters"] / 1e6:.2f} M' in rows[0]


@pytest.mark.parametrize('name', ['resnet18_8xb32', 'resnet34_8xb32', 'resnet50_8xb32', 'resnetv1c50_8xb32',
                                  'mobilenet-v1_8xb32', 'repvgg-A2_8xb32', 'vgg16_1xb128'])
def test_costs_are_those_of_the_networks(name):
    for path, model in models():
        if not model['Name'].startswith(name) or path.parent.name != 'plain':
            continue
        cfg = read(f'plain/{model["Name"]}.py').copy()
        if 'repvgg' in name:
            cfg.model.backbone.update(type='RepVGG', deploy=True)
        form = complexity(cfg).plain
        costs = (model['Metadata']['FLOPs'], model['Metadata']['Parameters'])
        assert (form.macs['model'], form.parameters['model']) == costs
        twins = [other['Metadata'] for _, other in models()
                 if other['Name'].startswith(name) and other['Name'].split('_')[-1] == model['Name'].split('_')[-1]]
        assert len(twins) >= 3 and all((twin['FLOPs'], twin['Parameters']) == costs for twin in twins)


@pytest.mark.parametrize('name', ['mobilenet-v1_8xb32-dbb_in1k', 'repvgg-A2_8xb32-repvgg_in1k',
                                  'repvgg-A2_8xb32-odbb_in1k',
                                  'resnetv1c50_8xb32-dbb_in1k', 'vgg16_1xb128-dbb_cifar100'])
def test_costs_in_training_are_those_of_the_static_networks(name):
    found = complexity(read(f'dbb/{name}.py'))
    form = found.augmented or found.plain
    macs, parameters = form.macs['model'], form.parameters['model']
    printed = f'{parameters / 1e6:.2f} M, {macs / 1e9:.3f} G', f'{parameters / 1e6:.2f} M, {macs / 1e6:.1f} M'
    row = next(line for line in (CONFIGS / 'dbb' / 'README.md').read_text().splitlines() if f'[{name}]' in line)
    assert any(f' {text} ' in row for text in printed)


@pytest.mark.parametrize('readme', READMES, ids=lambda path: path.parent.name)
def test_links_lead_somewhere_and_every_config_is_linked(readme):
    text = readme.read_text()
    links = [link for link in LINK.findall(text) if '://' not in link]
    assert [link for link in links if not (readme.parent / link).exists()] == []
    if readme.parent != CONFIGS and readme.parent.name != 'small':
        linked = {(readme.parent / link).resolve() for link in links}
        assert {path for path in readme.parent.glob('*.py')} <= linked


@pytest.mark.parametrize('readme', [*READMES, ROOT / 'README.md'], ids=lambda path: path.parent.name)
def test_commands_name_tools_configs_and_the_work_dirs_that_these_write(readme):
    for command in commands(readme):
        if command[0] not in ('bash', 'python'):
            continue
        assert (ROOT / command[1]).is_file(), command
        for argument in command[2:]:
            if argument.startswith('configs/'):
                assert (ROOT / argument).is_file(), command
            elif argument.startswith('work_dirs/') and command[2].startswith('configs/') and (
                    readme.parent.name != 'small'):
                assert argument.split('/')[1] == Path(command[2]).stem, command
            # the last epoch or iteration of the recipe
            last = re.search(r'(epoch|iter)_(\d+)\.pth', argument)
            if last and command[2].startswith('configs/') and readme.parent.name != 'small':
                loop = Config.fromfile(ROOT / command[2]).train_cfg
                assert int(last.group(2)) == loop[{'epoch': 'max_epochs', 'iter': 'max_iters'}[last.group(1)]]


@pytest.mark.parametrize('name', [name for name in all_configs() if re.search(r'-cd?_.*(coco|cityscapes)', name)])
def test_files_to_start_from_are_those_that_the_pre_training_writes(name):
    text = (CONFIGS / name).read_text()
    if not name.startswith(('detection/', 'segmentation/')):
        return
    path = re.search(r"^pretrained = '(.*)'$", text, flags=re.MULTILINE).group(1)
    source = re.search(r'configs/\S+\.py', text).group()
    assert Path(path).parts[:2] == ('work_dirs', Path(source).stem)
    if '-cd_' in name:
        assert Path(path).name == f'epoch_{Config.fromfile(ROOT / source).train_cfg.max_epochs}.pth'


def ablations() -> List[Tuple[str, str]]:
    rows = (CONFIGS / 'dyrep' / 'README.md').read_text().split('## Ablations')[1].splitlines()
    cells = [[cell.strip() for cell in row.split('|')[1:-1]] for row in rows if row.startswith('| ') and '](' in row]
    return [(LINK.search(config).group(1), options.strip('`')) for _, config, options in cells]


@pytest.mark.parametrize(('config', 'options'), ablations())
def test_ablations_by_options(config, options, tmp_path, monkeypatch):
    cfg = Config.fromfile(CONFIGS / 'dyrep' / config)
    given = dict(option.split('=') for option in options.split())
    values = {key: DictAction._parse_iterable(value) for key, value in given.items()}
    assert all(key.split('.')[0] in cfg for key in values)
    if 'model.backbone.structure' in values:
        monkeypatch.chdir(tmp_path)
        grown = build_model(cfg).backbone
        grown.expand('features.0.conv')
        write_json(values['model.backbone.structure'], grown.structure)
    cfg.merge_from_dict(values)
    hook, backbone = HOOKS.build(cfg.default_hooks.dyrep), build_model(cfg).backbone
    settings = {
        **{f'default_hooks.dyrep.{key}': getattr(hook, key) for key in ('interval', 'metric', 'begin', 'end')},
        'default_hooks.dyrep.dep': hook.policy.threshold,
        'model.backbone.space': 'dbb' if backbone.space == ['kxk', '1x1', '1x1_kxk', '1x1_avg'] else 'another',
        'model.backbone.gamma_init': backbone._dyrep.gamma_init,
        'model.backbone.branch_init': type(backbone._dyrep.start).__name__.lower(),
        'model.backbone.structure': 'work_dirs/vgg16_1xb128_cifar10/dyrep/structure_195.json' if (
            list(backbone.structure['ops']) == ['features.0.conv']) else 'another',
        'train_cfg.max_epochs': cfg.train_cfg.max_epochs,
        **{f'param_scheduler.{key}': cfg.param_scheduler[key] for key in ('T_max', 'end')},
    }
    assert {key: settings[key] for key in values} == values


@needs_images
@pytest.mark.slow
def test_commands_of_the_readme_run_one_after_the_other(tmp_path):
    """In a folder like the repository with ImageNet in data/, small; 2 processes for 8, 1 epoch for 120."""
    for name in ('configs', 'mmdyrep', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    imagenet_folder(tmp_path / 'data' / 'imagenet', 8, 4)
    small = classification(Path('data/imagenet'), 1, batch=2)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    lines = commands(CONFIGS / 'dyrep' / 'README.md')
    assert [Path(line[1]).name for line in lines] == [
        'dist_train.sh', 'dist_train.sh', 'test.py', 'deploy_fuse.py', 'test.py', 'get_complexity.py',
        'plot_structure.py', 'plot_history.py']
    for line in [*lines, *commands(CONFIGS / 'README.md')]:
        line = [part.replace('epoch_120', 'epoch_1') if part != '8' else '2' for part in line]
        if Path(line[1]).name in ('dist_train.sh', 'test.py') and line[2].startswith('configs/'):
            line += small if '--resume' not in line else [
                option.replace('max_epochs=1', 'max_epochs=2') for option in small]
        done = subprocess.run(line, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env={**os.environ, 'PATH': path, 'PYTHONPATH': str(tmp_path), 'OMP_NUM_THREADS': '1',
                                   'PORT': str(free_port())})
        if line[2].endswith('plain.py'):  # its config has the sizes of ImageNet: four images take a while, no more
            assert 'accuracy/top1' in done.stdout, done.stdout[-2000:]
        assert done.returncode == 0, f'{line}\n{done.stdout[-3000:]}'
    written = {file.name for file in (tmp_path / 'work_dirs' / 'resnet18_8xb32_in1k').iterdir()}
    assert {'epoch_1.pth', 'epoch_2.pth', 'plain.pth', 'plain.py', 'structure.png', 'history.png'} <= written
    assert (tmp_path / 'work_dirs' / 'retinanet_dyrep.py').exists()
