# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partialnet_mm.models import PartialSelfAttention
from partialnet_mm.models.gate import GaussianGate
from partialnet_mm.utils.flops import count_multiply_adds


class Attention(nn.Module):
    """Attention of a tensor to itself, with or without a mask."""

    def __init__(self, mask=None, learned=False):
        super().__init__()
        self.mask = nn.Parameter(mask) if learned else mask

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.mask)


@pytest.mark.parametrize('module, shape, expected', [
    (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 5, 7), 2 * 8 * 3 * 9 * 5 * 7),
    (nn.Conv2d(3, 8, 4, stride=4, bias=False), (1, 3, 17, 9), 8 * 3 * 16 * 4 * 2),
    (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 5, 5), 8 * 9 * 3 * 3),
    (nn.Linear(6, 4), (5, 6), 5 * 6 * 4),
    (nn.Linear(6, 4, bias=False), (2, 5, 6), 2 * 5 * 6 * 4),
    (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), (1, 3, 6, 6),
     3 * 4 * 36),
    (nn.ReLU(), (1, 3), 0),
    (GaussianGate(6), (3, 6, 5, 5), 3 * 2 * 6 * 6),
], ids=str)
def test_by_hand(module, shape, expected):
    assert count_multiply_adds(module, shape) == expected


@pytest.mark.parametrize('module', [
    Attention(), Attention(torch.zeros(5, 5)), Attention(torch.zeros(1, 3, 5, 5)),
    Attention(torch.zeros(1, 3, 5, 5), learned=True)
], ids=['no mask', 'mask', 'mask of heads', 'learned mask'])
@pytest.mark.parametrize('dim', [8, 64])
def test_attention_counts_once(module, dim):
    # Queries with keys, and weights with values: batch * heads * length^2 * dim each.
    assert count_multiply_adds(module, (2, 3, 5, dim)) == 2 * (2 * 3 * 5 * 5 * dim)


def test_self_attention_layer():
    layer = PartialSelfAttention(32, 4)
    conv, attended, places = 8, 24, 7 * 6
    assert count_multiply_adds(layer, (2, 32, 7, 6)) == 2 * places * (
        conv * conv * 9 + attended * 3 * attended + 2 * places * attended + attended * attended)


def test_dtype_of_the_module_is_kept():
    assert count_multiply_adds(nn.Linear(4, 4).double(), (1, 4)) == 16


class Switching(nn.Module):
    """Twice the work in training; can fail."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.frozen = nn.BatchNorm1d(4)
        self.fails = False

    def forward(self, x):
        if self.fails:
            raise RuntimeError('it fails')
        return self.frozen(self.linear(self.linear(x) if self.training else x))


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('fails', [True, False])
def test_modes_are_restored(training, fails):
    module = Switching().train(training)
    module.frozen.train(not training)
    module.fails = fails
    statistics = module.frozen.running_mean.clone()
    if fails:
        with pytest.raises(RuntimeError, match='it fails'):
            count_multiply_adds(module, (3, 4))
    else:
        assert count_multiply_adds(module, (3, 4)) == 3 * 16
    assert module.training == module.linear.training == training
    assert module.frozen.training != training
    assert torch.equal(module.frozen.running_mean, statistics)
    assert module.linear.weight.grad is None


def test_prints_nothing(capsys):
    count_multiply_adds(nn.Linear(2, 2), (1, 2))
    assert capsys.readouterr() == ('', '')
