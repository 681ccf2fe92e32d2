# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Layer-wise learning rates, by the constructors of mmpretrain and mmdet."""
import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from partialnet_mm.models import PartialNet

ARCH = dict(embed_dim=16, depths=(1, 2, 4, 2), num_heads=2, act_cfg=dict(type='ReLU'))
LAYERS = 9 + 2  # stem, nine blocks, head


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('name, depth', [
    ('downsample_layers.0.conv.weight', 0), ('downsample_layers.0.norm.bias', 0),
    ('stages.0.0.token_mixer.conv.weight', 1),
    ('downsample_layers.1.conv.weight', 2), ('stages.1.0.mlp.conv1.weight', 2), ('stages.1.1.mlp.conv1.weight', 3),
    ('downsample_layers.2.norm.weight', 4), ('stages.2.3.spatial_attention.logit_conv.weight', 7),
    ('downsample_layers.3.conv.weight', 8), ('stages.3.1.token_mixer.qkv.weight', 9),
    ('norm3.weight', 10),
])
def test_layer_depth(prefix, name, depth):
    assert PartialNet(ARCH).get_layer_depth(prefix + name, prefix) == (depth, LAYERS)


def test_layer_depth_of_what_is_not_the_backbones():
    model = PartialNet(ARCH)
    assert model.get_layer_depth('head.layers.0.weight', 'backbone.') == (LAYERS - 1, LAYERS)
    assert model.get_layer_depth('neck.stages.0.0.weight', 'backbone.') == (LAYERS - 1, LAYERS)


def test_every_layer_is_used():
    model = PartialNet(ARCH, out_indices=(0, 1, 2, 3))
    assert {model.get_layer_depth(name)[0] for name, _ in model.named_parameters()} == set(range(LAYERS))


def rates(constructor, model, paramwise_cfg):
    """Learning rate of each parameter by name."""
    optim_wrapper = constructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1., weight_decay=0.05)), paramwise_cfg)(model)
    by_parameter = {p: group['lr'] for group in optim_wrapper.optimizer.param_groups for p in group['params']}
    return {name: by_parameter[p] for name, p in model.named_parameters()}


def test_mmpretrains_constructor():
    pytest.importorskip('mmpretrain')
    from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
    from mmpretrain.registry import MODELS
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(
            type='ImageClassifier',
            backbone=dict(type='PartialNet', arch=ARCH),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=128)))
        lr = rates(LearningRateDecayOptimWrapperConstructor, model, dict(layer_decay_rate=0.5))
    assert lr['head.fc.weight'] == 1
    assert lr['backbone.stages.3.1.token_mixer.proj.weight'] == 0.5
    assert lr['backbone.stages.3.0.mlp.conv1.weight'] == lr['backbone.downsample_layers.3.conv.weight'] == 0.25
    assert lr['backbone.stages.2.0.token_mixer.gate.conv.weight'] == 0.5**6
    assert lr['backbone.stages.0.0.mlp.conv2.weight'] == 0.5**9
    assert lr['backbone.downsample_layers.0.conv.weight'] == lr['backbone.downsample_layers.0.norm.bias'] == 0.5**10
    assert len(set(lr.values())) == LAYERS


class ConvNeXtStylePartialNet(PartialNet):
    """mmdet's constructor goes by the name of the class, then by those of its parts."""


@pytest.mark.parametrize('decay_type, expected', [
    ('layer_wise', {'downsample_layers.0.conv.weight': 0.5**6, 'stages.0.0.mlp.conv1.weight': 0.5**5,
                    'downsample_layers.1.conv.weight': 0.5**4, 'stages.1.1.mlp.conv1.weight': 0.5**4,
                    'downsample_layers.2.conv.weight': 0.5**3, 'stages.2.2.mlp.conv1.weight': 0.5**3,
                    'stages.2.3.token_mixer.gate.conv.weight': 0.5**2, 'downsample_layers.3.conv.weight': 0.5,
                    'stages.3.1.token_mixer.position_bias.table': 0.5, 'norm0.weight': 1}),
    ('stage_wise', {'downsample_layers.0.conv.weight': 0.5**6, 'downsample_layers.3.conv.weight': 0.5**6,
                    'stages.0.0.mlp.conv1.weight': 0.5**5, 'stages.3.1.token_mixer.qkv.weight': 0.5**2,
                    'norm0.weight': 1}),
])
def test_mmdets_constructor(decay_type, expected):
    pytest.importorskip('mmdet')
    from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
    model = nn.Module()
    model.backbone = ConvNeXtStylePartialNet(ARCH, out_indices=(0, 1, 2, 3))
    model.bbox_head = nn.Linear(2, 2)
    lr = rates(LearningRateDecayOptimizerConstructor, model,
               dict(decay_rate=0.5, decay_type=decay_type, num_layers=5))
    assert {name: lr[f'backbone.{name}'] for name in expected} == expected
    assert lr['bbox_head.weight'] == 1


def test_frozen_stages_stay_out_of_the_optimizer():
    pytest.importorskip('mmdet')
    from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
    model = nn.Module()
    model.backbone = ConvNeXtStylePartialNet(ARCH, frozen_stages=4, out_norm=True)
    model.head = nn.Linear(2, 2)
    constructor = LearningRateDecayOptimizerConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.)), dict(decay_rate=0.5, num_layers=5))
    groups = constructor(model).optimizer.param_groups
    given = {p for group in groups for p in group['params']}
    assert given == set(model.head.parameters())
    assert isinstance(groups[0]['params'][0], torch.Tensor)
