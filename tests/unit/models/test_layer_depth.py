# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The layer of each parameter, which layer-wise learning rates go by."""
import pytest

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
