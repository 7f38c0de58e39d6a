"""ONNX of a fused network, and of an augmented one: nodes of the plain one, outputs of the augmented one."""
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import digit_version

from mmdyrep import DyRepBackbone

from ..backbones import unfriendly

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

NARROW = dict(base_channels=8, stem_channels=8)
CLASSIFIER = dict(type='ImageClassifier', backbone=dict(type='MobileNetV2', widen_factor=.25),
                  neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=10,
                                                                    in_channels=1280))
NETWORKS = {
    'classifier': ('mmpretrain', CLASSIFIER, (1, 3, 32, 32)),
    'classifier of RepVGG': ('mmpretrain', dict(CLASSIFIER, backbone=dict(type='RepVGG', arch=dict(
        num_blocks=[1, 1, 1, 1], width_factor=[.25] * 4, group_layer_map=None, se_cfg=None)), head=dict(
            type='LinearClsHead', num_classes=10, in_channels=128)), (1, 3, 32, 32)),
    'backbone of a detector': ('mmdet', dict(type='CSPNeXt', deepen_factor=.167, widen_factor=.125), (1, 3, 64, 96)),
    'backbone of a segmentor': ('mmseg', dict(
        type='ResNetV1c', depth=18, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True, **NARROW),
        (2, 3, 64, 64)),
}


def export(model, x, path):
    torch.onnx.export(model, x, str(path), opset_version=13)
    onnx.checker.check_model(str(path))
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def build(library, cfg, wrap):
    torch.manual_seed(0)
    cfg = dict(cfg)
    if wrap and 'backbone' in cfg:
        cfg['backbone'] = dict(type='DyRepBackbone', backbone=cfg['backbone'])
    elif wrap:
        cfg = dict(type='DyRepBackbone', backbone=cfg)
    with DefaultScope.overwrite_default_scope(library):
        model = unfriendly(MODELS.build(cfg))
    model.eval()
    return model


@pytest.mark.parametrize('name', NETWORKS)
def test_nodes_of_the_plain_network_and_outputs_of_the_augmented_one(name, tmp_path):
    library, cfg, shape = NETWORKS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = build(library, cfg, wrap=True)
    backbone = model if isinstance(model, DyRepBackbone) else model.backbone
    for op in backbone.candidates()[::4]:
        backbone.expand(op)
    nested = next(op for op in backbone.candidates() if '.branches.1x1_kxk.' in op)
    backbone.expand(nested, ['1x1_avg'])
    unfriendly(model, 1)
    with torch.no_grad():
        wanted = model(x)
    many = export(model, x, tmp_path / 'augmented.onnx')

    backbone.switch_to_deploy()
    fused = export(model, x, tmp_path / 'fused.onnx')
    plain = build(library, cfg, wrap=False)
    for module in plain.modules():
        if hasattr(module, 'switch_to_deploy') and module is not plain:
            module.switch_to_deploy()
            break
    assert fused == export(plain, x, tmp_path / 'plain.onnx')
    # blocks in eval mode run as one convolution; RepVGG's own have branches until they are switched
    assert many['Conv'] == fused['Conv'] or 'RepVGG' in name
    # the exporter of torch 2.9 and later folds what makes small kernels alone; a fused network has nothing of it
    assert 'ScatterND' not in many or 'RepVGG' in name and digit_version(torch.__version__) >= digit_version('2.9')
    assert 'ScatterND' not in fused

    wanted = wanted if isinstance(wanted, (tuple, list)) else [wanted]
    for file in ('fused.onnx', 'augmented.onnx'):
        session = onnxruntime.InferenceSession(str(tmp_path / file), providers=['CPUExecutionProvider'])
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert len(got) == len(wanted)
        for ours, theirs in zip(wanted, got):
            np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4 * max(1, float(ours.abs().max())))
