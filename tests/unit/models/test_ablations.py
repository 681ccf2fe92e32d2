# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""token_mixers and spatial_attention: the layers of the paper's ablation tables, and FasterNet."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partialnet_mm.models import (
    PartialChannelAttention,
    PartialNet,
    PartialSelfAttention,
    PartialSpatialAttention,
)


def test_full_channel_attention(randomize_norms):
    layer = randomize_norms(PartialChannelAttention(8, 0.25, attend_all=True)).eval()
    x = torch.randn(2, 8, 5, 6)
    mixed = torch.cat((F.conv2d(x[:, :2], layer.conv.weight, padding=1), x[:, 2:]), 1)
    expected = layer.norm(mixed * layer.gate(mixed))
    torch.testing.assert_close(layer(x), expected)
    assert layer.gate.conv.weight.shape == (8, 8, 1, 2)


def test_full_self_attention():
    layer = PartialSelfAttention(8, 2, 0.25, attend_all=True).eval()
    x = torch.randn(2, 8, 3, 4)
    mixed = torch.cat((F.conv2d(x[:, :2], layer.conv.weight, padding=1), x[:, 2:]), 1)
    tokens = layer.norm(mixed.flatten(2).transpose(1, 2))
    query, key, value = (layer.qkv(tokens).view(2, 12, 3, 2, 4).permute(2, 0, 3, 1, 4))
    weights = (query @ key.transpose(-1, -2) / 2 + layer.position_bias(3, 4)).softmax(-1)
    expected = layer.proj((weights @ value).transpose(1, 2).flatten(2)).transpose(1, 2).view(2, 8, 3, 4)
    torch.testing.assert_close(layer(x), expected)


def test_full_spatial_attention(randomize_norms):
    layer = randomize_norms(PartialSpatialAttention(8, attend_all=True)).eval()
    x = torch.randn(2, 8, 5, 6)
    gated = x * F.hardsigmoid(torch.einsum('c,bchw->bhw', layer.logit_conv.weight.flatten(), x))[:, None]
    expected = torch.cat((layer.attended_norm(gated[:, :4]), layer.rest_conv(layer.rest_norm(gated[:, 4:]))), 1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('options, message', [
    (dict(token_mixers='pat'), "token_mixers must be among .*'pat_ch'.*, got 'pat'"),
    (dict(token_mixers=('pat_ch', 'pat_ch')), r"one for each of the 4 stages, got \('pat_ch', 'pat_ch'\)"),
    (dict(token_mixers=3), 'one for each of the 4 stages, got 3'),
    (dict(gate='se', token_mixers='partial_conv'), "gate='se' has no effect"),
    (dict(num_heads=0), 'num_heads must be a positive int, got 0'),
    (dict(mixer_residual=1), 'mixer_residual must be None, a bool, or one for each of the 4 stages, got 1'),
    (dict(mixer_residual=(True, False)), r'mixer_residual must be None, .*, got \(True, False\)'),
    (dict(spatial_attention=True), r"spatial_attention must be one of \('partial', 'full', 'none'\), got True"),
])
def test_bad_input(options, message, tiny_arch):
    with pytest.raises(ValueError, match=message):
        PartialNet(tiny_arch, **options)


def test_partial_convolution_alone_has_no_attention_left(tiny_arch):
    model = PartialNet(tiny_arch, token_mixers='partial_conv', spatial_attention='none')
    attention = (PartialChannelAttention, PartialSelfAttention, PartialSpatialAttention, nn.LayerNorm)
    assert not [module for module in model.modules() if isinstance(module, attention)]


@pytest.mark.parametrize('mixers, residual, kinds, marked', [
    ('partial_conv', (False, False, False, True), (0, 0, 0, 1), 1), ('partial_conv', True, (1, 1, 1, 1), 5),
    ('partial_conv', None, (0, 0, 0, 0), 0), ('partial_conv', False, (0, 0, 0, 0), 0),
    (('pat_ch', 'pat_ch', 'pat_ch', 'pat_sf'), None, (0, 0, 0, 1), 0),
    (('pat_ch', 'pat_ch', 'pat_ch', 'pat_sf'), [False, False, False, True], (0, 0, 0, 1), 0),
    (('pat_ch', 'pat_ch', 'pat_ch', 'pat_sf'), False, (0, 0, 0, 0), 1),
    ('dpconv', (False, False, False, True), (0, 0, 0, 1), 1),
], ids=str)
@torch.no_grad()
def test_a_residual_around_the_token_mixer(mixers, residual, kinds, marked, tiny_arch, randomize_norms):
    arguments = dict(arch=tiny_arch, token_mixers=mixers, mixer_residual=residual, out_indices=(0, 1, 2, 3))
    model = randomize_norms(PartialNet(**arguments)).eval()
    for stage, kind in zip(model.stages, kinds):
        block, x = stage[0], torch.randn(2, stage[0].mlp.conv1.in_channels, 6, 5)
        assert block.mixer_residual == kind
        mixed = x * kind + block.token_mixer(x)
        torch.testing.assert_close(block(x), (mixed if kind else x) + block.mix_channels(mixed))
    # only a choice against the mixer's own is among the tensors
    assert len([name for name in model.state_dict() if name.endswith('own_residual')]) == marked
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    model.switch_to_deploy()
    merged = PartialNet(**arguments, deploy=True).eval()
    merged.load_state_dict(model.state_dict(), strict=True)
    for out, want in zip(merged(x), expected):
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


def test_heads_beside_a_variant():
    model = PartialNet('t1-appendix', num_heads=4)
    assert {len(block.token_mixer.position_bias.table) for block in model.stages[3]} == {4}
    assert PartialNet('t1-appendix').stages[3][0].token_mixer.num_heads == 6
