# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Batch norms that get one value a channel."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partialnet_mm.models import PartialNet
from partialnet_mm.models._layers import normalize


@pytest.mark.parametrize('norm_type', [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_one_value_a_channel_takes_the_running_statistics(norm_type, randomize_norms):
    norm = randomize_norms(norm_type(4)).train()
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(1, 4, 1, 1)
    expected = F.batch_norm(x, mean, var, norm.weight, norm.bias, training=False)
    assert torch.equal(normalize(norm, x), expected)
    assert torch.equal(norm.running_mean, mean) and torch.equal(norm.running_var, var)
    assert norm.training


@pytest.mark.parametrize('shape', [(2, 4, 1, 1), (1, 4, 1, 2)])
def test_two_values_a_channel_take_their_own(shape, randomize_norms):
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


@pytest.mark.parametrize('arch', ['t0', 't2'])
@pytest.mark.parametrize('size', [(32, 32), (32, 47)])
def test_the_smallest_image_trains_alone(arch, size):
    model = PartialNet(arch, out_indices=(0, 1, 2, 3)).train()
    model.init_weights()
    outs = model(torch.randn(1, 3, *size))
    assert outs[-1].shape[2:] == (1, 1)
    sum(out.square().mean() for out in outs).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
