# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Batch norms that get one value per channel, and convolutions that are matrix products."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partialnet_mm.models._layers import GlobalConv2d, PointwiseConv2d, normalize


@pytest.mark.parametrize('norm_type', [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_one_value_per_channel_takes_the_running_statistics(norm_type, randomize_norms):
    norm = randomize_norms(norm_type(4)).train()
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(1, 4, 1, 1)
    expected = F.batch_norm(x, mean, var, norm.weight, norm.bias, training=False)
    assert torch.equal(normalize(norm, x), expected)
    assert torch.equal(norm.running_mean, mean) and torch.equal(norm.running_var, var)
    assert norm.training


@pytest.mark.parametrize('shape', [(2, 4, 1, 1), (1, 4, 1, 2)])
def test_two_values_per_channel_take_their_own(shape, randomize_norms):
    norm = randomize_norms(nn.BatchNorm2d(4)).train()
    x = torch.randn(shape)
    expected = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
    mean = norm.running_mean.clone()
    assert torch.allclose(normalize(norm, x), expected, atol=1e-6)
    assert not torch.equal(norm.running_mean, mean)


def test_other_norms_are_applied_as_they_are():
    x = torch.randn(1, 4, 1, 1)
    norm = nn.GroupNorm(1, 4)
    assert torch.equal(normalize(norm, x), norm(x))
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        normalize(nn.BatchNorm2d(4, track_running_stats=False), x)


@pytest.mark.parametrize('of_weight', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('of_input', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('layer, size', [(GlobalConv2d(6, 4, (1, 2)), (1, 2)), (GlobalConv2d(6, 4, (3, 2)), (3, 2)),
                                         (PointwiseConv2d(6, 4, 1), (5, 3))], ids=['1 x 2', '3 x 2', 'pointwise'])
def test_products_are_convolutions_in_any_memory_format(layer, size, of_input, of_weight):
    layer = layer.double().to(memory_format=of_weight)
    x = torch.randn(3, 6, *size, dtype=torch.float64).contiguous(memory_format=of_input)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias))
