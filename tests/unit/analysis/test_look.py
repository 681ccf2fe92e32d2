# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Looking into networks: heat maps, receptive fields, both halves of partial attention, layers that end stages."""
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from partialnet_mm.analysis.look import (
    METHODS,
    cam_method,
    find_map_layer,
    heat_maps,
    largest_pixels,
    receptive_field,
    split_maps,
    splitting_layers,
    stage_layers,
)
from partialnet_mm.models import PartialNet, PATConv2d


class SmallNetwork(nn.Module):
    """Two convolutions and a classifier; what follows the first may write into its feature map."""

    def __init__(self, inplace=False):
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.act = nn.ReLU(inplace)
        self.second = nn.Conv2d(5, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.second(self.act(self.first(x))).relu().mean((2, 3)))


# Grad-CAM

@pytest.mark.parametrize('inplace', [False, True])
def test_grad_cam_is_its_formula(inplace):
    """Channels weighted by their mean gradient, the positive part of the sum, enlarged and scaled to [0, 1]."""
    network, images, labels = SmallNetwork(inplace).eval(), torch.randn(2, 3, 16, 24), [2, 0]
    maps = network.first(images).detach().requires_grad_()
    logits = network.head(network.second(maps.relu()).relu().mean((2, 3)))
    gradient, = torch.autograd.grad(logits[0, 2] + logits[1, 0], maps)
    expected = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach()
    expected = expected - expected.amin((1, 2), keepdim=True)
    expected = expected / expected.amax((1, 2), keepdim=True)
    for parameter in network.parameters():
        parameter.requires_grad_(False)  # as in a network with frozen stages
    found = heat_maps(network, 'first', images, labels)
    assert found.shape == (2, 16, 24) and expected.std() > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # The heat map of a smaller layer has the size of the image, and its own scale.
    small = heat_maps(network, 'second', images, labels)
    assert small.shape == (2, 16, 24) and small.min() == 0 and small.max() == pytest.approx(1, abs=1e-5)


def test_heat_maps_are_the_librarys():
    from pytorch_grad_cam import HiResCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    network, images = SmallNetwork().eval(), torch.randn(1, 3, 16, 16)
    expected = HiResCAM(network, [network.second])(images, [ClassifierOutputTarget(1)])
    np.testing.assert_array_equal(heat_maps(network, 'second', images, [1], 'hirescam'), expected)
    assert np.abs(heat_maps(network, 'second', images, [1]) - expected).max() > 0.01


@pytest.mark.parametrize('method', METHODS)
def test_every_method_runs(method):
    found = heat_maps(SmallNetwork().eval(), 'second', torch.randn(1, 3, 16, 16), [1], method)
    assert found.shape == (1, 16, 16) and np.isfinite(found).all()


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install grad-cam'):
        cam_method()


# Receptive fields

def test_receptive_field_of_plain_convolutions():
    """Of ones, the gradient counts the ways from a pixel to the middle."""
    network = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(3)])
    for layer in network:
        nn.init.ones_(layer.weight)
    row = np.convolve(np.convolve([1, 1, 1], [1, 1, 1]), [1, 1, 1])
    for layer, ways in (('2', row), ('0', np.ones(3))):
        field = receptive_field(network, layer, torch.randn(2, 1, 17, 15))
        expected = np.zeros((17, 15))
        reach = len(ways) // 2
        expected[8 - reach:9 + reach, 7 - reach:8 + reach] = np.outer(ways, ways)
        np.testing.assert_array_equal(field, expected)


@pytest.mark.parametrize('fraction, count', [(0.1, 1), (0.4, 1), (0.5, 2), (0.7, 2), (0.9, 3), (0.95, 4), (1, 4)])
def test_largest_pixels(fraction, count):
    chosen = largest_pixels(torch.tensor([[1., 3.], [4., 2.]]) / 7, fraction)
    assert chosen.sum() == count
    assert chosen.flatten()[[2, 1, 3, 0]].tolist() == [True] * count + [False] * (4 - count)


def test_an_empty_field_is_an_error():
    with pytest.raises(ValueError, match='no pixel contributes'):
        largest_pixels(torch.zeros(2, 2), 0.5)


# Both halves of partial attention

@pytest.mark.parametrize('mixer', ['pat_ch', 'pat_sf', 'full_ch', 'full_sf', 'partial_conv'])
@pytest.mark.parametrize('spatial_attention', ['partial', 'full', 'none'])
def test_split_maps_are_the_mixers(mixer, spatial_attention, tiny_arch, randomize_norms):
    """The halves of what the mixer is given and returns, computed by its own layers."""
    network = PartialNet(tiny_arch, token_mixers=mixer, spatial_attention=spatial_attention)
    randomize_norms(network).eval()
    image = torch.randn(1, 3, 64, 96)
    name = 'stages.2.1.token_mixer'
    assert name in splitting_layers(network)
    given = []
    layer, block = network.get_submodule(name), network.stages[2][1]
    with torch.no_grad():
        handles = [layer.register_forward_pre_hook(lambda module, args: given.append(args[0])),
                   block.register_forward_pre_hook(lambda module, args: given.append(args[0]))]
        network(image)
        for handle in handles:
            handle.remove()
        _, x = given
        found = split_maps(network, [name], image)[name]
        convolved = layer.conv(x[:, :16])
        first = 0 if mixer.startswith('full') else 16
        attended = torch.cat((convolved, x[:, 16:]), 1)[:, first:]
        expected = [x[0, :16], convolved[0], attended[0], layer(x)[0, first:]]
        for maps, own in zip(found, expected):
            torch.testing.assert_close(maps, own)
        assert found.first_attended == first
        if mixer.endswith('_ch'):
            torch.testing.assert_close(found.gate, layer.gate(attended).flatten())
        else:
            assert found.gate is None
        if spatial_attention == 'none':
            assert found.spatial_gate is None
        else:
            mixed = block.mlp(layer(x) if not mixer.endswith('_sf') else x + layer(x))
            seen = mixed if spatial_attention == 'full' else mixed[:, :32]
            torch.testing.assert_close(
                found.spatial_gate, F.hardsigmoid(block.spatial_attention.logit_conv(seen))[0, 0])


def test_split_maps_of_patconv():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), PATConv2d(16, 16, 3, stride=2, padding=1), PATConv2d(
        16, 16, 3, padding=1, split_ratio=1)).eval()
    assert splitting_layers(network) == ['1']  # the last one convolves all channels
    image = torch.randn(1, 3, 12, 12)
    found = split_maps(network, ['1'], image)['1']
    assert [tuple(maps.shape) for maps in found[:4]] == [(4, 10, 10), (4, 5, 5), (12, 10, 10), (12, 5, 5)]
    torch.testing.assert_close(torch.cat((found.convolved_out, found.attended_out)), network[:2](image)[0])
    torch.testing.assert_close(found.gate, network[1].gate(F.avg_pool2d(found.attended_in, 2)[None]).flatten())
    with pytest.raises(ValueError, match=r"layer '0' does not split its channels .* allowed are \['1'\]"):
        split_maps(network, ['0'], image)


# Layers

@pytest.mark.parametrize('backbone, names', [
    (dict(type='ResNet', depth=18), ['relu', 'layer1', 'layer2', 'layer3', 'layer4']),
    (dict(type='MobileNetV2', widen_factor=0.25), ['layer1', 'layer2', 'layer3', 'layer5', 'conv2']),
    (dict(type='ConvNeXt', arch='atto'), ['stages.0', 'stages.1', 'stages.2', 'stages.3']),
    (dict(type='PartialNet', arch='t0'), ['stages.0', 'stages.1', 'stages.2', 'stages.3']),
    (dict(type='PartialNet', arch='t0', out_indices=(1, 3), deploy=True), ['stages.0', 'norm1', 'stages.2', 'norm3']),
])
def test_stages_of_any_network(backbone, names):
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='ImageClassifier', backbone=backbone)).eval()
    found = stage_layers(model, torch.randn(1, 3, 64, 96))
    assert [layer.name for layer in found] == [f'backbone.{name}' for name in names]
    assert [(layer.height, layer.width) for layer in found[-4:]] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    last = find_map_layer(model, torch.randn(1, 3, 64, 96), found[-1].name)
    assert last == found[-1]


def test_networks_without_maps_and_unknown_layers():
    pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = dict(type='VisionTransformer', arch='deit-t', img_size=32)
        model = MODELS.build(dict(type='ImageClassifier', backbone=backbone)).eval()
    with pytest.raises(ValueError, match='no layer of VisionTransformer returns feature maps'):
        stage_layers(model, torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="'backbone.layers.3' does not return one feature map"):
        find_map_layer(model, torch.randn(1, 3, 32, 32), 'backbone.layers.3')
    with pytest.raises(ValueError, match="'backbone.patch_embed.projector' is unknown; .*'backbone.patch_embed.proj"):
        find_map_layer(model, torch.randn(1, 3, 32, 32), 'backbone.patch_embed.projector')
