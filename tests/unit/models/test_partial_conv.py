# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F

from partialnet_mm.models import PartialConv
from partialnet_mm.models.patconv import split_channels


@pytest.mark.parametrize('channels, ratio, expected', [
    (32, 0.25, (8, 24)), (96, 0.25, (24, 72)), (160, 1 / 32, (5, 155)), (10, 0.25, (2, 8)), (48, 1 / 16, (3, 45)),
    (48, 0.5, (24, 24)), (7, 1, (7, 0)), (4, 0.25, (1, 3)),
])
def test_split_channels(channels, ratio, expected):
    assert split_channels(channels, ratio) == expected


@pytest.mark.parametrize('ratio', [0, -0.5, 1.01, float('nan')])
def test_split_ratio_outside_its_range(ratio):
    with pytest.raises(ValueError, match=r'split_ratio must lie in \(0, 1\], got ' + str(ratio).replace('.', r'\.')):
        split_channels(32, ratio)


def test_split_ratio_leaving_no_channel():
    with pytest.raises(ValueError, match=r'split_ratio=0\.01 leaves no channel of 32 .* at least 1/32'):
        split_channels(32, 0.01)


@pytest.mark.parametrize('ratio, kernel_size', [(0.25, 3), (0.5, 5), (1, 3)])
def test_convolves_the_first_channels_and_passes_the_rest(ratio, kernel_size):
    layer = PartialConv(12, ratio, kernel_size)
    x = torch.randn(2, 12, 5, 7, requires_grad=True)
    width = int(12 * ratio)
    convolved = F.conv2d(x[:, :width], layer.conv.weight, padding=kernel_size // 2)
    out = layer(x)
    torch.testing.assert_close(out, torch.cat((convolved, x[:, width:]), dim=1))
    assert torch.equal(out[:, width:], x[:, width:])
    assert [p.shape for p in layer.parameters()] == [(width, width, kernel_size, kernel_size)]

    grad_out = torch.randn_like(out)
    grad_x, grad_weight = torch.autograd.grad(out, (x, layer.conv.weight), grad_out)
    expected_x, expected_weight = torch.autograd.grad(convolved, (x, layer.conv.weight), grad_out[:, :width])
    torch.testing.assert_close(grad_weight, expected_weight)
    torch.testing.assert_close(grad_x[:, :width], expected_x[:, :width])
    assert torch.equal(grad_x[:, width:], grad_out[:, width:])
