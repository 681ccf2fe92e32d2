# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partialnet_mm.analysis.flops import count_multiply_adds, multiply_adds_by_layer
from partialnet_mm.models import PartialNet, PartialSelfAttention
from partialnet_mm.models.gates import GaussianGate


class Attention(nn.Module):
    """Attention of a tensor to itself, with or without a mask."""

    def __init__(self, mask=None, learned=False):
        super().__init__()
        self.mask = nn.Parameter(mask) if learned else mask

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.mask)


class Product(nn.Module):
    """A matrix with a vector."""

    def __init__(self, rows):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, 4))

    def forward(self, x):
        return self.weight @ x


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
    (Product(3), (4, ), 3 * 4),
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
    conv, attended, pixels = 8, 24, 7 * 6
    assert count_multiply_adds(layer, (2, 32, 7, 6)) == 2 * pixels * (
        conv * conv * 9 + attended * 3 * attended + 2 * pixels * attended + attended * attended)


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


class Nested(nn.Module):
    """A layer that is used twice, a function call of its own, and a container that is not called."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU())
        self.inside = nn.ModuleDict(dict(conv=nn.Conv1d(4, 2, 1, bias=False)))
        self.weight = nn.Parameter(torch.zeros(3, 4))
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        x = self.shared(self.shared(x))
        self.inside['conv'](x.T)
        return F.linear(x, self.weight)


def test_layers_have_all_that_runs_in_them():
    module, x = Nested(), torch.zeros(5, 4)
    counts = multiply_adds_by_layer(module, lambda: module(x))
    assert counts == {'': 260, 'shared': 160, 'shared.0': 2 * 5 * 16, 'inside': 40, 'inside.conv': 5 * 4 * 2}
    assert counts[''] == 160 + 40 + 5 * 3 * 4 == count_multiply_adds(module, (5, 4))


def test_layers_outside_a_call_of_the_whole():
    """Some submodules of a detector are called one by one; what runs outside of all belongs to the whole."""
    module, x = Nested(), torch.zeros(5, 4)
    counts = multiply_adds_by_layer(module, lambda: module.shared(x @ x.T @ x))
    assert counts == {'': 2 * 5 * 5 * 4 + 80, 'shared': 80, 'shared.0': 80}


def test_layers_of_a_backbone(tiny_arch):
    model = PartialNet(tiny_arch)
    image = torch.zeros(1, 3, 64, 64)
    counts = multiply_adds_by_layer(model, lambda: model(image))
    assert counts[''] == count_multiply_adds(model, (1, 3, 64, 64))
    assert counts[''] == counts['downsample_layers'] + counts['stages']
    assert counts['downsample_layers.0.conv'] == 16 * 16 * 16 * 3 * 16
    gate = model.stages[0][0].token_mixer.gate
    assert counts['stages.0.0.token_mixer.gate'] == gate.conv.weight.numel()
    mixer = 'stages.3.0.token_mixer'
    assert counts[mixer] == 4 * 4 * 96 * 2 + sum(counts[f'{mixer}.{name}'] for name in ('conv', 'qkv', 'proj'))


@pytest.mark.parametrize('fails', [True, False])
def test_no_hooks_are_left(fails):
    module = Switching()
    module.fails = fails
    try:
        count_multiply_adds(module, (1, 4))
    except RuntimeError:
        assert fails
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
