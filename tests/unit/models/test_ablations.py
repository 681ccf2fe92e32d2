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

FASTERNETS = dict(t0=(40, (1, 2, 8, 2), 'GELU'), s=(128, (1, 2, 13, 2), 'ReLU'))


def from_timm(name):
    """Our name for a tensor of timm's FasterNet."""
    for theirs, ours in (('patch_embed.proj', 'downsample_layers.0.conv'),
                         ('patch_embed.norm', 'downsample_layers.0.norm'),
                         ('.spatial_mixing.partial_conv3', '.token_mixer.conv'),
                         ('.mlp.0', '.mlp.conv1'), ('.mlp.1', '.mlp.norm'), ('.mlp.3', '.mlp.conv2'),
                         ('.blocks.', '.')):
        name = name.replace(theirs, ours)
    if '.downsample.' in name:
        stage, rest = name[len('stages.'):].split('.downsample.')
        name = f'downsample_layers.{stage}.{rest.replace("reduction", "conv")}'
    return name


@pytest.mark.parametrize('size', FASTERNETS)
def test_without_attention_it_is_timms_fasternet(size, randomize_norms):
    timm = pytest.importorskip('timm')
    embed_dim, depths, act = FASTERNETS[size]
    theirs = randomize_norms(timm.create_model(f'fasternet_{size}', num_classes=0)).eval()
    ours = PartialNet(dict(embed_dim=embed_dim, depths=depths, num_heads=1, act_cfg=dict(type=act)),
                      token_mixers='partial_conv', spatial_attention='none').eval()
    weights = {from_timm(name): value for name, value in theirs.state_dict().items()
               if not name.startswith(('conv_head', 'classifier'))}
    ours.load_state_dict(weights, strict=True)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs.forward_features(x), rtol=1e-4, atol=1e-4)


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
    (dict(spatial_attention=True), r"spatial_attention must be one of \('partial', 'full', 'none'\), got True"),
])
def test_bad_input(options, message, tiny_arch):
    with pytest.raises(ValueError, match=message):
        PartialNet(tiny_arch, **options)


def test_partial_convolution_alone_has_no_attention_left(tiny_arch):
    model = PartialNet(tiny_arch, token_mixers='partial_conv', spatial_attention='none')
    attention = (PartialChannelAttention, PartialSelfAttention, PartialSpatialAttention, nn.LayerNorm)
    assert not [module for module in model.modules() if isinstance(module, attention)]
