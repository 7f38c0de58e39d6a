"""The libraries' own publish_model.py and get_flops.py on models with blocks."""
import re
import time

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmdyrep import DyRepBackbone

from ..library_configs import call, library_of, small
from ..runs import needs_images
from ..scenes import write_scenes

pytestmark = pytest.mark.slow
BACKBONE = dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8)


@pytest.mark.parametrize('library, script', [
    ('mmpretrain', 'model_converters/publish_model.py'), ('mmdet', 'model_converters/publish_model.py'),
    ('mmseg', 'misc/publish_model.py')])
def test_published_checkpoints_keep_their_structure(library, script, tmp_path):
    net = DyRepBackbone(BACKBONE)
    net.expand('layer2.0.conv2')
    state = {f'backbone.{key}': value for key, value in net.state_dict().items()}
    torch.save(dict(meta={}, state_dict=state, optimizer={}, message_hub={}, dyrep={}), tmp_path / 'trained.pth')
    call(library, script, tmp_path / 'trained.pth', tmp_path / 'published.pth')
    for _ in range(50):  # two of them leave renaming to a process that they do not wait for
        found = list(tmp_path.glob('published[-_]*.pth'))
        if found:
            break
        time.sleep(0.1)
    assert 'optimizer' not in torch.load(found[0], weights_only=False)
    again = DyRepBackbone(BACKBONE, pretrained=str(found[0]))
    again.init_weights()
    assert again.structure == net.structure
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items())


@needs_images
@pytest.mark.parametrize('name, script', [
    ('resnext', ('analysis_tools/get_flops.py', '--shape', 64)),
    ('retinanet', ('analysis_tools/get_flops.py', '--num-images', 1))])
def test_complexity_of_the_structure_that_the_config_gives(name, script, tmp_path):
    library, scenes = library_of(name), write_scenes(tmp_path / 'scenes', 2)
    cfg = small(name, tmp_path, scenes)
    cfg.model.backbone.static = True
    cfg.dump(tmp_path / 'static.py')
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(dict(cfg.model, data_preprocessor=None))
    counted = model if library == 'mmdet' else model.backbone
    output = call(library, script[0], tmp_path / 'static.py', *script[1:])
    number, unit = re.search(r'Params: ([\d.]+)([KM])', output).groups()
    parameters = sum(parameter.numel() for parameter in counted.parameters())
    assert float(number) * {'K': 1e3, 'M': 1e6}[unit] == pytest.approx(parameters, rel=0.01)
