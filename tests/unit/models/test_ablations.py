# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""token_mixers, gate and spatial_attention: the networks of the paper's ablation tables."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partialnet_mm.analysis.flops import count_multiply_adds
from partialnet_mm.models import (
    PartialChannelAttention,
    PartialNet,
    PartialSelfAttention,
    PartialSpatialAttention,
    SEGate,
    SRMGate,
)

CH3 = ('pat_ch', ) * 3
# Table: arguments, parameters (M) and multiply-adds (G) of T2 with the classifier: the paper's where it agrees with
# itself, else those counted on the official modules.
ROWS = {
    '3 P-P-P': (dict(), 12.651, 1.03),
    '3 F-P-P': (dict(token_mixers=('full_ch', ) * 3 + ('pat_sf', )), 13.03, 1.04),
    '3 P-F-P': (dict(spatial_attention='full'), 12.65, 1.04),
    '3 P-P-F': (dict(token_mixers=CH3 + ('full_sf', )), 14.49, 1.12),
    '4 none': (dict(token_mixers='partial_conv', spatial_attention='none'), 9.41, 0.914),
    '4 + ch': (dict(token_mixers='pat_ch', spatial_attention='none'), 11.09, 0.917),
    '4 + ch + sp': (dict(token_mixers='pat_ch'), 11.47, 0.92),
    '6 regular': (dict(token_mixers=('conv', ) * 3 + ('pat_sf', )), 15.82, 2.12),
    '12 SRM': (dict(gate='srm'), 12.165, 1.03),
    '12 SE': (dict(gate='se'), 12.28, 1.04),
}


@pytest.mark.parametrize('row', ROWS)
def test_sizes_of_the_paper(row):
    options, params, flops = ROWS[row]
    model = PartialNet('t2', **options)
    head = 512 * 1280 + 1280 * 1000 + 1000
    assert (sum(p.numel() for p in model.parameters()) + head) / 1e6 == pytest.approx(params, rel=1e-3)
    model.switch_to_deploy()
    assert (count_multiply_adds(model, (1, 3, 224, 224)) + head) / 1e9 == pytest.approx(flops, rel=0.01)


FASTERNETS = dict(t0=(40, (1, 2, 8, 2), 'GELU'), t1=(64, (1, 2, 8, 2), 'GELU'), t2=(96, (1, 2, 8, 2), 'ReLU'),
                  s=(128, (1, 2, 13, 2), 'ReLU'), m=(144, (3, 4, 18, 3), 'ReLU'), l=(192, (3, 4, 18, 3), 'ReLU'))


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


def test_srm_gate_weights_each_channel_by_itself(randomize_norms):
    gate = randomize_norms(SRMGate(6)).eval()
    x = torch.randn(3, 6, 4, 5)
    weight = gate.conv.weight.view(6, 2)
    logits = x.mean((2, 3)) * weight[:, 0] + x.std((2, 3)) * weight[:, 1]
    expected = F.hardsigmoid(gate.norm(logits[:, :, None, None]))
    torch.testing.assert_close(gate(x), expected)
    gate.switch_to_deploy()
    assert gate.norm is None
    torch.testing.assert_close(gate(x), expected)
    gate.switch_to_deploy()
    torch.testing.assert_close(gate(x), expected)


def test_se_gate():
    gate = SEGate(8)
    assert gate.reduce.weight.shape == (2, 8, 1, 1)
    x = torch.randn(3, 8, 4, 5)
    hidden = F.relu(x.mean((2, 3)) @ gate.reduce.weight.view(2, 8).t())
    torch.testing.assert_close(gate(x), F.hardsigmoid(hidden @ gate.expand.weight.view(8, 2).t())[:, :, None, None])


@pytest.mark.parametrize('options', [options for options, _, _ in ROWS.values()] + [
    dict(token_mixers='depthwise_conv'), dict(gate='srm', token_mixers='full_ch')], ids=str)
def test_every_parameter_learns(options, tiny_arch):
    model = PartialNet(tiny_arch, **options).train()
    model(torch.randn(2, 3, 64, 64))[0].square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # With one token mixed through a softmax over few places, a bias shared by all distances may not matter.
    assert not [name for name in idle if 'position_bias' not in name]


@pytest.mark.parametrize('options, message', [
    (dict(token_mixers='pat'), "token_mixers must be among .*'pat_ch'.*, got 'pat'"),
    (dict(token_mixers=('pat_ch', 'pat_ch')), r"one for each of the 4 stages, got \('pat_ch', 'pat_ch'\)"),
    (dict(token_mixers=3), 'one for each of the 4 stages, got 3'),
    (dict(gate='eca'), r"gate must be one of \('gaussian', 'srm', 'se'\), got 'eca'"),
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
