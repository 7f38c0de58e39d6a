import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ..backbones import unfriendly
from ..runs import ROOT

CONFIG = ROOT / 'configs' / 'small' / 'dyrep_resnet18-w8_b64_fashion-mnist.py'


@pytest.fixture
def cfg():
    return Config.fromfile(CONFIG)


@pytest.fixture
def augmented(cfg):
    """The config's classifier with two blocks and one nested, all norms at random."""
    init_default_scope('mmpretrain')
    torch.manual_seed(1)
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).eval()
    model.backbone.expand('conv1')
    model.backbone.expand('layer1.0.conv2', ['1x1', 'residual'])
    model.backbone.expand('conv1.branches.1x1_kxk.conv', ['1x1_avg'])
    return unfriendly(model)


@pytest.fixture
def checkpoint(augmented, tmp_path):
    """As mmengine saves one in a run with EMA: the average in `state_dict`, the raw weights aside."""
    state = augmented.state_dict()
    raw = {key: value + 0.01 if value.is_floating_point() and 'running_var' not in key else value
           for key, value in state.items()}
    path = tmp_path / 'epoch_3.pth'
    torch.save({'meta': {'epoch': 3, 'iter': 30, 'dataset_meta': {'classes': ['shirt', 'coat']}, 'cfg': 'old'},
                'state_dict': state, 'ema_state_dict': {'steps': torch.tensor(30), **{
                    f'module.{key}': value for key, value in raw.items()}},
                'optimizer': {'state': {}}, 'message_hub': {}, 'dyrep': {}}, path)
    return path
