# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The algebra of batch norms."""
import pytest
import torch
from torch import nn

from partialnet_mm.models._folding import (
    conv_of,
    fold_after,
    fold_before,
    norm_affine,
    require_plain,
    weight_and_bias,
)
from partialnet_mm.models._layers import PointwiseConv2d
from partialnet_mm.models.partialnet import Downsample


@pytest.mark.parametrize('affine', [True, False])
def test_norm_affine(affine, randomize_norms):
    norm = randomize_norms(nn.BatchNorm2d(5, affine=affine, eps=1e-3)).eval()
    x = torch.randn(2, 5, 3, 3)
    scale, shift = norm_affine(norm, 'it', 5)
    assert scale.dtype == shift.dtype == torch.float64
    folded = x.double() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    torch.testing.assert_close(folded.float(), norm(x), rtol=1e-5, atol=1e-6)


def test_an_identity_is_a_norm_that_was_fused():
    scale, shift = norm_affine(nn.Identity(), 'it', 3)
    assert torch.equal(scale, torch.ones(3).double())
    assert torch.equal(shift, torch.zeros(3).double())


@pytest.mark.parametrize('options', [
    dict(kernel_size=3, padding=1), dict(kernel_size=4, stride=4), dict(kernel_size=3, padding=2, dilation=2),
    dict(kernel_size=(1, 2)), dict(kernel_size=3, groups=2), dict(kernel_size=3, bias=False)
])
def test_fold_after(options, randomize_norms):
    conv = nn.Conv2d(4, 6, **options)
    norm = randomize_norms(nn.BatchNorm2d(6)).eval()
    x = torch.randn(2, 4, 9, 8)
    before = torch.get_rng_state()
    folded = conv_of(nn.Conv2d, conv, *fold_after(*weight_and_bias(conv), norm_affine(norm, 'it', 6)))
    assert torch.equal(torch.get_rng_state(), before)  # merging draws no random numbers
    torch.testing.assert_close(folded(x), norm(conv(x)), rtol=1e-5, atol=1e-6)
    assert folded.weight.requires_grad
    assert folded.weight.is_contiguous()
    for attribute in ('kernel_size', 'stride', 'padding', 'dilation', 'groups', 'in_channels', 'out_channels'):
        assert getattr(folded, attribute) == getattr(conv, attribute)


@pytest.mark.parametrize('bias', [True, False])
def test_fold_before(bias):
    conv = nn.Conv2d(4, 6, 1, bias=bias)
    scale, shift = torch.randn(2, 4).double()
    x = torch.randn(2, 4, 5, 5)
    expected = conv(x * scale.float().view(-1, 1, 1) + shift.float().view(-1, 1, 1))
    folded = conv_of(PointwiseConv2d, conv, *fold_before(*weight_and_bias(conv), (scale, shift)))
    torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-6)


def test_folding_is_differentiable(randomize_norms):
    conv, norm = nn.Conv2d(2, 3, 1).double(), randomize_norms(nn.BatchNorm2d(3)).double().eval()
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    weights = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    parameters = [*conv.parameters(), *norm.parameters()]
    expected = torch.autograd.grad((norm(conv(x)) * weights).sum(), parameters)
    weight, bias = fold_after(*weight_and_bias(conv), norm_affine(norm, 'it', 3))
    got = torch.autograd.grad((nn.functional.conv2d(x, weight, bias) * weights).sum(), parameters)
    for mine, theirs in zip(got, expected):
        torch.testing.assert_close(mine, theirs)


def test_keeps_dtype():
    conv = nn.Conv2d(2, 3, 1).to(torch.bfloat16)
    folded = conv_of(nn.Conv2d, conv, *fold_after(*weight_and_bias(conv), norm_affine(nn.BatchNorm2d(3), 'it', 3)))
    assert folded.weight.dtype == folded.bias.dtype == torch.bfloat16


@pytest.mark.parametrize('norm, error, text', [
    (nn.GroupNorm(1, 4), TypeError, 'the third norm is a GroupNorm.*allowed are BN and SyncBN'),
    (nn.LayerNorm(4), TypeError, 'the third norm is a LayerNorm'),
    (nn.BatchNorm2d(4, track_running_stats=False), ValueError,
     'the third norm is a BatchNorm2d with track_running_stats=False'),
    (nn.SyncBatchNorm(4), ValueError, 'the third norm is a SyncBatchNorm that has seen no batch: load'),
], ids=['GN', 'LN', 'untracked', 'SyncBN'])
def test_refuses_norms_without_an_affine(norm, error, text):
    with pytest.raises(error, match=text):
        norm_affine(norm, 'the third norm', 4)


def test_refuses_layers_that_something_sits_on():
    assert isinstance(require_plain(nn.Conv2d(1, 1, 1), 'it'), nn.Conv2d)
    with pytest.raises(TypeError, match='conv1 is a Sequential.*switch_to_deploy.*merge or remove what wraps'):
        require_plain(nn.Sequential(nn.Conv2d(1, 1, 1)), 'conv1')
    for kind in ('forward_hook', 'forward_pre_hook', 'full_backward_hook', 'full_backward_pre_hook'):
        hooked = nn.Conv2d(1, 1, 1)
        getattr(hooked, f'register_{kind}')(lambda *args: None)
        with pytest.raises(TypeError, match='conv1 has hooks.*remove'):
            require_plain(hooked, 'conv1')


@pytest.mark.parametrize('stride', [4, 2])
def test_downsample(stride, randomize_norms):
    layer = randomize_norms(Downsample(3, 8, stride)).eval()
    # Rows and columns that fill no kernel are left out.
    x = torch.randn(2, 3, 4 * stride + stride - 1, 3 * stride + 1)
    out = layer(x)
    assert out.shape == (2, 8, 4, 3)
    torch.testing.assert_close(layer(x[:, :, :4 * stride, :3 * stride]), out)
    assert list(dict(layer.named_parameters())) == ['conv.weight', 'norm.weight', 'norm.bias']
    torch.testing.assert_close(layer.folded()(x), out, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer(x), out)  # the layer stays as it is
