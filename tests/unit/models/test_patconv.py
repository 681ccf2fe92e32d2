# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partialnet_mm.models import PartialChannelAttention, PartialSelfAttention, PartialSpatialAttention
from partialnet_mm.models._folding import weight_and_bias
from partialnet_mm.models.patconv import MergedSpatialAttention
from tests.helpers.reference_network import gaussian_gate, hard_sigmoid, pairwise_buckets


def norm(layer, x):
    """A batch norm in the layer's mode, without touching its statistics."""
    return F.batch_norm(x, layer.running_mean.clone(), layer.running_var.clone(), layer.weight, layer.bias,
                        layer.training, eps=1e-5)


def pat_ch(layer, x, width):
    conv_part, attended = x[:, :width], x[:, width:]
    gate = hard_sigmoid(norm(layer.gate.norm, gaussian_gate(layer.gate.conv.weight, attended)))
    return torch.cat((F.conv2d(conv_part, layer.conv.weight, padding=1), norm(layer.norm, attended * gate)), 1)


def pat_sp(layer, x, half):
    attended, rest = x[:, :half], x[:, half:]
    gate = hard_sigmoid((attended * layer.logit_conv.weight).sum(1, keepdim=True))
    return torch.cat((norm(layer.attended_norm, attended * gate),
                      F.conv2d(norm(layer.rest_norm, rest), layer.rest_conv.weight)), 1)


def pat_sf(layer, x, width, heads):
    conv_part, attended = x[:, :width], x[:, width:]
    batch, channels, height, columns = attended.shape
    tokens = attended.permute(0, 2, 3, 1).reshape(batch, -1, channels)
    tokens = F.layer_norm(tokens, (channels, ), layer.norm.weight, layer.norm.bias, 1e-6)
    query, key, value = (tokens @ layer.qkv.weight.T).chunk(3, -1)
    buckets = pairwise_buckets(height, columns)
    dim = channels // heads
    outs = []
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        logits = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(dim)
        weights = (logits + layer.position_bias.table[head][buckets]).softmax(-1)
        outs.append(weights @ value[..., part])
    tokens = torch.cat(outs, -1) @ layer.proj.weight.T + layer.proj.bias
    attended = tokens.reshape(batch, height, columns, channels).permute(0, 3, 1, 2)
    return torch.cat((F.conv2d(conv_part, layer.conv.weight, padding=1), attended), 1)


def assert_same_function(layer, reference, x):
    """Same output, and same gradient of the input and of every parameter."""
    x = x.requires_grad_()
    expected, out = reference(x), layer(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    leaves = (x, *layer.parameters())
    direction = torch.randn_like(out)
    wanted = torch.autograd.grad(expected, leaves, direction)
    for got, want in zip(torch.autograd.grad(out, leaves, direction), wanted):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('ratio, width', [(0.25, 4), (0.5, 8)])
def test_channel_attention(training, ratio, width, randomize_norms):
    layer = randomize_norms(PartialChannelAttention(16, ratio)).train(training)
    assert_same_function(layer, lambda x: pat_ch(layer, x, width), torch.randn(4, 16, 6, 5))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('channels', [12, 7])
def test_spatial_attention(training, channels, randomize_norms):
    layer = randomize_norms(PartialSpatialAttention(channels)).train(training)
    assert layer.logit_conv.weight.shape == (1, channels // 2, 1, 1)
    assert_same_function(layer, lambda x: pat_sp(layer, x, channels // 2), torch.randn(3, channels, 4, 5))


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (7, 7)])
@pytest.mark.parametrize('ratio, width, heads', [(0.25, 4, 4), (0.5, 8, 2)])
def test_self_attention(size, ratio, width, heads, randomize_norms):
    layer = randomize_norms(PartialSelfAttention(16, heads, ratio))
    nn.init.normal_(layer.position_bias.table)
    assert_same_function(layer, lambda x: pat_sf(layer, x, width, heads), torch.randn(2, 16, *size))


@pytest.mark.parametrize('build', [lambda: PartialChannelAttention(8, 1), lambda: PartialSelfAttention(8, 4, 1)])
def test_ratio_of_one_is_a_plain_convolution(build):
    layer = build()
    x = torch.randn(1, 8, 5, 4)
    assert torch.equal(layer(x), F.conv2d(x, layer.conv.weight, padding=1))
    assert [name for name, _ in layer.named_parameters()] == ['conv.weight']


@pytest.mark.parametrize('wanted, ratio, heads', [(4, 0.25, 4), (6, 0.25, 6), (5, 0.25, 4), (6, 0.75, 4), (7, 0.5, 6)])
def test_heads_divide_the_attended_width(wanted, ratio, heads):
    layer = PartialSelfAttention(24 if ratio == 0.5 else 16 if heads == 4 else 24, wanted, ratio)
    attended = layer.split_sizes[1]
    assert layer.num_heads == heads == max(n for n in range(1, wanted + 1) if attended % n == 0)
    assert layer.position_bias.table.shape == (heads, 41)


@pytest.mark.parametrize('rates', [dict(attn_drop_rate=0.5), dict(proj_drop_rate=0.5)])
def test_dropout_acts_in_training_only(rates):
    layer = PartialSelfAttention(16, 4, **rates)
    plain = PartialSelfAttention(16, 4).eval()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 16, 6, 6)
    layer.eval()
    assert torch.equal(layer(x), plain(x))
    layer.train()
    first, second = layer(x), layer(x)
    assert torch.equal(first[:, :4], second[:, :4])  # the convolved part has none
    assert not torch.allclose(first[:, 4:], second[:, 4:])


def test_projection_dropout_zeroes_and_rescales():
    layer = PartialSelfAttention(16, 4, proj_drop_rate=0.5)
    x = torch.randn(2, 16, 6, 6)
    dropped, full = layer(x)[:, 4:], layer.eval()(x)[:, 4:]
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * full[kept])


def test_attention_dropout_keeps_the_mean():
    layer = PartialSelfAttention(16, 4, attn_drop_rate=0.5)
    x = torch.randn(1, 16, 6, 6)
    with torch.no_grad():
        mean = layer.attend(x[:, 4:].expand(4000, -1, -1, -1)).mean(0)
        expected = layer.eval().attend(x[:, 4:])[0]
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize('attend_all', [False, True])
@pytest.mark.parametrize('layer_scale', [False, True])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('channels', [12, 7])
def test_spatial_attention_folds_into_the_convolution_before(channels, bias, layer_scale, attend_all, randomize_norms):
    conv = nn.Conv2d(9, channels, 1, bias=bias)
    layer = randomize_norms(PartialSpatialAttention(channels, attend_all=attend_all)).eval()
    scale = torch.randn(channels) if layer_scale else None
    x = torch.randn(2, 9, 4, 5)
    expected = layer(conv(x)) * (scale[:, None, None] if layer_scale else 1)
    weight, bias, shift = layer.fold_into(*weight_and_bias(conv), None if scale is None else scale.double())
    assert weight.shape == (channels + 1, 9, 1, 1)
    assert weight.dtype == bias.dtype == shift.dtype == torch.float64
    before, logit_conv = F.conv2d(x, weight[:-1].float(), bias[:-1].float()), nn.Conv2d(9, 1, 1)
    logit_conv.load_state_dict(dict(weight=weight[-1:], bias=bias[-1:]))
    torch.testing.assert_close(MergedSpatialAttention(logit_conv, shift)(before, x), expected, rtol=1e-5, atol=1e-5)


def test_channel_attention_leaves_its_output_norm_to_the_next_layer(randomize_norms):
    layer = randomize_norms(PartialChannelAttention(16)).eval()
    x = torch.randn(2, 16, 4, 5)
    expected = layer(x)
    merged, (scale, shift) = layer.merged()
    assert scale.dtype == shift.dtype == torch.float64
    assert torch.equal(scale[:4], torch.ones(4).double())
    assert torch.equal(shift[:4], torch.zeros(4).double())
    out = merged.eval()(x) * scale.float().view(-1, 1, 1) + shift.float().view(-1, 1, 1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer(x), expected)
    assert merged.conv is layer.conv
