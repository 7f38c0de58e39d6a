"""Backbones of mmpretrain, mmdet and mmseg, as small as their options allow.

``python -m tests.zoo`` prints the table of docs/backbones.md.
"""
from typing import Any, Dict, List, NamedTuple

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmdyrep import DyRepBackbone

from .backbones import HRNET

BN: Dict[str, Any] = dict(norm_cfg=dict(type='BN'))
RESNET = dict(base_channels=8, stem_channels=8)
IN_SEGMENTOR = dict(type='mmseg.ResNetV1c', depth=18, num_stages=4, norm_cfg=dict(type='BN'))
VIT = dict(arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16), img_size=64)


class Entry(NamedTuple):
    """A backbone.

    Args:
        cfg (dict): Its config; the type with the library.
        size (int): Of the images to run it on, height and width.
        wrapper (dict): Settings of DyRepBackbone that it needs.
        dtype (torch.dtype): float32 for those whose own code makes tensors of that type.
    """

    cfg: Dict[str, Any]
    size: int = 64
    wrapper: Dict[str, Any] = {}
    dtype: torch.dtype = torch.float64

    @property
    def library(self) -> str:
        return self.cfg['type'].split('.')[0]

    def plain(self, deploy: bool = False) -> nn.Module:
        """The backbone, built in its library's scope; with ``deploy`` in its own deploy form, if it has one."""
        cfg = dict(self.cfg)
        own = DEPLOY.get(cfg['type'])
        if deploy and own:
            cfg[own] = True
        with DefaultScope.overwrite_default_scope(self.library):
            return MODELS.build(cfg)

    def wrapped(self, **settings: Any) -> DyRepBackbone:
        """The same, wrapped."""
        with DefaultScope.overwrite_default_scope(self.library):
            return DyRepBackbone(dict(self.cfg), **{**self.wrapper, **settings})


# Those with a re-parameterization of their own, and the setting for their deploy form.
DEPLOY = {'mmpretrain.RepVGG': 'deploy', 'mmpretrain.MobileOne': 'deploy', 'mmpretrain.RepMLPNet': 'deploy',
          'mmpretrain.RepLKNet': 'small_kernel_merged', 'mmpretrain.LeViT': 'deploy'}

ZOO: Dict[str, Entry] = {
    # mmpretrain
    'ResNet': Entry(dict(type='mmpretrain.ResNet', depth=50, **RESNET)),
    'ResNet, with_cp': Entry(dict(type='mmpretrain.ResNet', depth=18, with_cp=True, **RESNET)),
    'ResNetV1c': Entry(dict(type='mmpretrain.ResNetV1c', depth=18, **RESNET)),
    'ResNetV1d': Entry(dict(type='mmpretrain.ResNetV1d', depth=18, **RESNET)),
    'ResNet_CIFAR': Entry(dict(type='mmpretrain.ResNet_CIFAR', depth=18, **RESNET), 32),
    'ResNeXt': Entry(dict(type='mmpretrain.ResNeXt', depth=50, groups=4, width_per_group=4, **RESNET)),
    'SEResNet': Entry(dict(type='mmpretrain.SEResNet', depth=50, se_ratio=4, **RESNET)),
    'SEResNeXt': Entry(dict(type='mmpretrain.SEResNeXt', depth=50, se_ratio=4, groups=4, width_per_group=4, **RESNET)),
    'Res2Net': Entry(dict(type='mmpretrain.Res2Net', depth=50, scales=4, base_width=8, **RESNET)),
    'ResNeSt': Entry(dict(type='mmpretrain.ResNeSt', depth=50, **RESNET)),
    'RegNet': Entry(dict(type='mmpretrain.RegNet', arch='regnetx_400mf')),
    'VGG': Entry(dict(type='mmpretrain.VGG', depth=11, **BN)),
    'MobileNetV2': Entry(dict(type='mmpretrain.MobileNetV2', widen_factor=.25)),
    'MobileNetV3': Entry(dict(type='mmpretrain.MobileNetV3', arch='small')),
    'MobileOne': Entry(dict(type='mmpretrain.MobileOne', arch=dict(
        num_blocks=[1, 1, 1, 1], width_factor=[.25, .25, .25, .25], num_conv_branches=[2, 1, 1, 1],
        num_se_blocks=[0, 0, 0, 1]))),
    'RepVGG': Entry(dict(type='mmpretrain.RepVGG', arch=dict(
        num_blocks=[1, 1, 1, 1], width_factor=[.25] * 4, group_layer_map=None, se_cfg=None))),
    'RepLKNet': Entry(dict(type='mmpretrain.RepLKNet', arch=dict(
        large_kernel_sizes=[7, 7, 5, 5], layers=[1, 1, 1, 1], channels=[8, 8, 16, 16], small_kernel=3, dw_ratio=1))),
    'RepMLPNet': Entry(dict(type='mmpretrain.RepMLPNet', img_size=64, arch=dict(
        channels=[8, 16], depths=[1, 1], sharesets_nums=[1, 4]), out_indices=(1,)), 64,
        dict(input_shape=(64, 64))),
    'ShuffleNetV1': Entry(dict(type='mmpretrain.ShuffleNetV1')),
    'ShuffleNetV2': Entry(dict(type='mmpretrain.ShuffleNetV2', widen_factor=.5)),
    'EfficientNet': Entry(dict(type='mmpretrain.EfficientNet', arch='b0')),
    'EfficientNetV2': Entry(dict(type='mmpretrain.EfficientNetV2', arch='b0')),
    'CSPDarkNet': Entry(dict(type='mmpretrain.CSPDarkNet', depth=53)),
    'CSPResNet': Entry(dict(type='mmpretrain.CSPResNet', depth=50)),
    'HRNet': Entry(HRNET),
    'InceptionV3': Entry(dict(type='mmpretrain.InceptionV3'), 96),
    'DenseNet': Entry(dict(type='mmpretrain.DenseNet', arch=dict(growth_rate=8, depths=[2, 2], init_channels=8))),
    'LeViT': Entry(dict(type='mmpretrain.LeViT', arch='128s', img_size=64), 64, dict(input_shape=(64, 64))),
    'AlexNet': Entry(dict(type='mmpretrain.AlexNet')),
    'LeNet5': Entry(dict(type='mmpretrain.LeNet5'), 32, dict(input_shape=(1, 32, 32))),
    'ConvMixer': Entry(dict(type='mmpretrain.ConvMixer', arch=dict(
        embed_dims=16, depth=2, patch_size=4, kernel_size=5))),
    'EdgeNeXt': Entry(dict(type='mmpretrain.EdgeNeXt', arch='xxsmall'), dtype=torch.float32),
    'VAN': Entry(dict(type='mmpretrain.VAN', arch=dict(
        embed_dims=[8, 16, 16, 16], depths=[1, 1, 1, 1], ffn_ratios=[2, 2, 2, 2]))),
    'MobileViT': Entry(dict(type='mmpretrain.MobileViT', arch='xx_small')),
    'ConvNeXt': Entry(dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1, 1, 1, 1], channels=[8, 8, 16, 16]))),
    'VisionTransformer': Entry(dict(type='mmpretrain.VisionTransformer', **VIT), 64, dict(input_shape=(64, 64))),
    'SwinTransformer': Entry(dict(type='mmpretrain.SwinTransformer', arch=dict(
        embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2]), img_size=64, pad_small_map=True)),
    'ResNet, GroupNorm': Entry(dict(type='mmpretrain.ResNet', depth=18, norm_cfg=dict(type='GN', num_groups=2),
                                    **RESNET)),
    'PoolFormer': Entry(dict(type='mmpretrain.PoolFormer', arch='s12')),
    # mmdet
    'ResNet (mmdet)': Entry(dict(type='mmdet.ResNet', depth=18, norm_eval=True, frozen_stages=1, **RESNET)),
    'ResNet, deformable': Entry(dict(
        type='mmdet.ResNet', depth=50, dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True), **RESNET)),
    'RegNet (mmdet)': Entry(dict(type='mmdet.RegNet', arch='regnetx_400mf')),
    'Res2Net (mmdet)': Entry(dict(type='mmdet.Res2Net', depth=50, scales=4, base_width=8, **RESNET)),
    'CSPDarknet': Entry(dict(type='mmdet.CSPDarknet', deepen_factor=.33, widen_factor=.25)),
    'CSPNeXt': Entry(dict(type='mmdet.CSPNeXt', deepen_factor=.33, widen_factor=.25)),
    'Darknet': Entry(dict(type='mmdet.Darknet', depth=53)),
    'HourglassNet': Entry(dict(type='mmdet.HourglassNet', downsample_times=2, num_stacks=1, stage_channels=(8, 8, 8),
                               stage_blocks=(1, 1, 1), feat_channel=8), 128),
    'DetectoRS_ResNet': Entry(dict(
        type='mmdet.DetectoRS_ResNet', depth=50, conv_cfg=dict(type='ConvAWS'), sac=dict(type='SAC', use_deform=True),
        stage_with_sac=(False, True, True, True), output_img=False, **RESNET), 128),
    'TridentResNet': Entry(dict(
        type='mmdet.TridentResNet', depth=50, num_branch=3, test_branch_idx=1, strides=(1, 2, 2), dilations=(1, 1, 1),
        trident_dilations=(1, 2, 3), out_indices=(2,), num_stages=3, **RESNET)),
    'SSDVGG': Entry(dict(type='mmdet.SSDVGG', depth=16, with_last_pool=False, ceil_mode=True, out_indices=(3, 4),
                         out_feature_indices=(22, 34))),
    # mmseg
    'ResNetV1c (mmseg)': Entry(dict(type='mmseg.ResNetV1c', depth=18, num_stages=4, strides=(1, 2, 1, 1),
                                    dilations=(1, 1, 2, 4), contract_dilation=True, **RESNET)),
    'BiSeNetV1': Entry(dict(type='mmseg.BiSeNetV1', backbone_cfg=IN_SEGMENTOR, spatial_channels=(8, 8, 8, 128),
                            out_channels=256)),
    'BiSeNetV2': Entry(dict(type='mmseg.BiSeNetV2', detail_channels=(8, 8, 16), semantic_channels=(8, 8, 16, 16),
                            bga_channels=16)),
    'CGNet': Entry(dict(type='mmseg.CGNet', num_channels=(8, 16, 32), num_blocks=(2, 2))),
    'DDRNet': Entry(dict(type='mmseg.DDRNet', channels=8, ppm_channels=16), 128),
    'ERFNet': Entry(dict(type='mmseg.ERFNet')),
    'FastSCNN': Entry(dict(type='mmseg.FastSCNN')),
    'ICNet': Entry(dict(type='mmseg.ICNet', backbone_cfg=dict(
        IN_SEGMENTOR, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), out_indices=(0, 1, 2, 3), contract_dilation=True,
        style='pytorch'), layer_channels=(128, 512), psp_out_channels=32, out_channels=(16, 32, 32))),
    'PIDNet': Entry(dict(type='mmseg.PIDNet', channels=8, ppm_channels=16, num_stem_blocks=1, num_branch_blocks=1),
                    128),
    'STDCNet': Entry(dict(type='mmseg.STDCNet', stdc_type='STDCNet1', in_channels=3, channels=(8, 16, 16, 16, 16),
                          bottleneck_type='cat', num_convs=4, act_cfg=dict(type='ReLU'), **BN)),
    'UNet': Entry(dict(type='mmseg.UNet', base_channels=4)),
    'MSCAN': Entry(dict(type='mmseg.MSCAN', embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1], **BN)),
    'MixVisionTransformer': Entry(dict(type='mmseg.MixVisionTransformer', embed_dims=8, num_layers=[1, 1, 1, 1],
                                       num_heads=[1, 1, 1, 1])),
}


def rows() -> List[str]:
    """Lines of the table: backbone, library, ops that can be expanded of those larger than 1x1, and why not."""
    lines = ['| backbone | library | can be expanded | the others |', '|---|---|---|---|']
    for name, entry in ZOO.items():
        net = entry.wrapped()
        found, passed = net.candidates(), {}
        for conv, reason in net.skipped().items():
            if not reason.startswith('kernel '):
                passed.setdefault(reason, []).append(conv)
        why = '; '.join(f'{len(convs)} x {reason}' for reason, convs in passed.items())
        if entry.cfg['type'] in DEPLOY:
            why = '; '.join(filter(None, ['fused into its own deploy form', why]))
        lines.append(f'| {name.split(" (")[0]} | {entry.library} | {len(found)} | {why} |')
    return lines


if __name__ == '__main__':
    print('\n'.join(rows()))
