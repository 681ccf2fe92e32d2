# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import pytest
import torch
from torch import nn

from partialnet_mm.models._folding import conv_like, fold_affine_before, fold_norm_after, norm_affine
from partialnet_mm.models.downsample import Downsample


@pytest.mark.parametrize('affine', [True, False])
def test_norm_affine(affine, randomize_norms):
    norm = randomize_norms(nn.BatchNorm2d(5, affine=affine, eps=1e-3)).eval()
    x = torch.randn(2, 5, 3, 3)
    scale, shift = norm_affine(norm, 'it')
    assert scale.dtype == shift.dtype == torch.float64
    assert not scale.requires_grad
    assert not shift.requires_grad
    folded = x.double() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    torch.testing.assert_close(folded.float(), norm(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('options', [
    dict(kernel_size=3, padding=1), dict(kernel_size=4, stride=4), dict(kernel_size=3, padding=2, dilation=2),
    dict(kernel_size=(1, 2)), dict(kernel_size=3, groups=2), dict(kernel_size=3, bias=False)
])
def test_fold_norm_after(options, randomize_norms):
    conv = nn.Conv2d(4, 6, **options)
    norm = randomize_norms(nn.BatchNorm2d(6)).eval()
    x = torch.randn(2, 4, 9, 8)
    folded = fold_norm_after(conv, norm, 'it')
    torch.testing.assert_close(folded(x), norm(conv(x)), rtol=1e-5, atol=1e-6)
    assert folded.weight.requires_grad
    for attribute in ('kernel_size', 'stride', 'padding', 'dilation', 'groups', 'in_channels', 'out_channels'):
        assert getattr(folded, attribute) == getattr(conv, attribute)


@pytest.mark.parametrize('bias', [True, False])
def test_fold_affine_before(bias):
    conv = nn.Conv2d(4, 6, 1, bias=bias)
    scale, shift = torch.randn(2, 4).double()
    x = torch.randn(2, 4, 5, 5)
    expected = conv(x * scale.float().view(-1, 1, 1) + shift.float().view(-1, 1, 1))
    torch.testing.assert_close(fold_affine_before(conv, scale, shift)(x), expected, rtol=1e-5, atol=1e-6)


def test_keeps_dtype():
    conv = nn.Conv2d(2, 3, 1).to(torch.bfloat16)
    folded = fold_norm_after(conv, nn.BatchNorm2d(3), 'it')
    assert folded.weight.dtype == folded.bias.dtype == torch.bfloat16
    assert conv_like(conv, conv.weight, None).bias is None


@pytest.mark.parametrize('norm, error, text', [
    (nn.GroupNorm(1, 4), TypeError, 'the third norm is a GroupNorm.*allowed are BN and SyncBN'),
    (nn.LayerNorm(4), TypeError, 'the third norm is a LayerNorm'),
    (nn.BatchNorm2d(4, track_running_stats=False), ValueError,
     'the third norm is a BatchNorm2d with track_running_stats=False'),
    (nn.SyncBatchNorm(4), ValueError, 'the third norm is a SyncBatchNorm that has seen no batch: load'),
], ids=['GN', 'LN', 'untracked', 'SyncBN'])
def test_refuses_what_it_cannot_merge(norm, error, text):
    with pytest.raises(error, match=text):
        norm_affine(norm, 'the third norm')


def test_sync_bn_merges_once_it_has_statistics(randomize_norms):
    norm = randomize_norms(nn.SyncBatchNorm(4)).eval()
    norm.num_batches_tracked.fill_(1)
    conv = nn.Conv2d(3, 4, 1)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(fold_norm_after(conv, norm, 'it')(x), norm(conv(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('stride', [4, 2])
def test_downsample(stride, randomize_norms):
    layer = randomize_norms(Downsample(3, 8, stride)).eval()
    # Rows and columns that fill no kernel are left out.
    x = torch.randn(2, 3, 4 * stride + stride - 1, 3 * stride + 1)
    out = layer(x)
    assert out.shape == (2, 8, 4, 3)
    torch.testing.assert_close(layer(x[:, :, :4 * stride, :3 * stride]), out)
    assert list(dict(layer.named_parameters())) == ['conv.weight', 'norm.weight', 'norm.bias']

    layer.switch_to_deploy()
    torch.testing.assert_close(layer(x), out, rtol=1e-5, atol=1e-5)
    conv = layer.conv
    layer.switch_to_deploy()
    assert layer.conv is conv
    deployed = Downsample(3, 8, stride, deploy=True)
    deployed.load_state_dict(layer.state_dict())
    assert torch.equal(deployed(x), layer(x))
