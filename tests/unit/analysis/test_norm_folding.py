# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Norms are folded where that is right, and nowhere else."""
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from partialnet_mm.analysis.norm_folding import draw_norms, fold_batch_norms


class Network(nn.Module):
    """Layers and norms, and what to do with them."""

    def __init__(self, compute: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def conv(**kwargs: object) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, **kwargs)


def norm(**kwargs: object) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4, **kwargs)


def used_by_kwargs(net: nn.Module, x: Tensor) -> Tensor:
    return net.norm(input=net.conv(x))


class StandardizedConv(nn.Conv2d):
    """Its weight is not what it convolves with."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=self.padding)


CASES = {
    'plain': (lambda net, x: net.norm(net.conv(x)), dict(conv=conv(), norm=norm()), ['norm'], []),
    'no bias, no affine': (lambda net, x: net.norm(net.conv(x)),
                           dict(conv=conv(bias=False), norm=norm(affine=False)), ['norm'], []),
    'depthwise, strided': (lambda net, x: net.norm(net.conv(x)),
                           dict(conv=conv(groups=4, stride=2), norm=norm()), ['norm'], []),
    'input by name': (used_by_kwargs, dict(conv=conv(), norm=norm()), ['norm'], []),
    'two in a row': (lambda net, x: net.b(net.a(net.conv(x))), dict(conv=conv(), a=norm(), b=norm()), ['a'], ['b']),
    'linear, channels last': (lambda net, x: net.norm(net.linear(x[:, :, 0, :4])),
                              dict(linear=nn.Linear(4, 4), norm=nn.BatchNorm1d(4)), [], ['norm']),
    'linear': (lambda net, x: net.norm(net.linear(x[:, :, 0, 0])),
               dict(linear=nn.Linear(4, 4), norm=nn.BatchNorm1d(4)), ['norm'], []),
    'output used beside': (lambda net, x: (lambda y: net.norm(y) + y)(net.conv(x)), dict(conv=conv(), norm=norm()),
                           [], ['norm']),
    'its shape used beside': (lambda net, x: (lambda y: net.norm(y) * y.shape[1] * y.dim())(net.conv(x)),
                              dict(conv=conv(), norm=norm()), ['norm'], []),
    'activation between': (lambda net, x: net.norm(net.conv(x).relu_()), dict(conv=conv(), norm=norm()), [],
                           ['norm']),
    'norm before': (lambda net, x: net.conv(net.norm(x)), dict(conv=conv(), norm=norm()), [], ['norm']),
    'layer used twice': (lambda net, x: net.norm(net.conv(x)) + net.conv(x + 1), dict(conv=conv(), norm=norm()), [],
                         ['norm']),
    'norm used twice': (lambda net, x: net.norm(net.conv(x)) + net.norm(x), dict(conv=conv(), norm=norm()), [],
                        ['norm']),
    'two norms of one layer': (lambda net, x: (lambda y: net.a(y) + net.b(y))(net.conv(x)),
                               dict(conv=conv(), a=norm(), b=norm()), [], ['a', 'b']),
    'no statistics': (lambda net, x: net.norm(net.conv(x)), dict(conv=conv(), norm=norm(track_running_stats=False)),
                      [], ['norm']),
    'weight that is changed': (lambda net, x: net.norm(net.conv(x)),
                               dict(conv=StandardizedConv(4, 4, 3, padding=1), norm=norm()), [], ['norm']),
    'never run': (lambda net, x: net.conv(x), dict(conv=conv(), norm=norm()), [], ['norm']),
}


@pytest.mark.parametrize('case', CASES)
def test_folds_what_follows_a_layer_alone(case):
    compute, parts, folded, left = CASES[case]
    network = Network(compute, **parts).eval()
    x = torch.randn(5, 4, 6, 6)
    draw_norms(network, lambda: network(x))
    with torch.no_grad():
        expected = network(x)
        found = fold_batch_norms(network, lambda: network(x))
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    assert (found.folded, found.left) == (folded, left)
    kinds = {name: type(part) for name, part in network.named_modules()}
    assert {kinds[name] for name in folded} <= {nn.Identity}


def test_timms_norms_leave_their_activation():
    timm_layers = pytest.importorskip('timm.layers')
    blocks = [timm_layers.ConvNormAct(4, 4, 3, **options) for options in
              (dict(), dict(apply_act=False), dict(act_layer=nn.GELU, drop_layer=nn.Dropout2d))]
    network = nn.Sequential(*blocks).eval()
    x = torch.randn(5, 4, 6, 6)
    draw_norms(network, lambda: network(x))
    with torch.no_grad():
        expected = network(x)
        found = fold_batch_norms(network, lambda: network(x))
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    assert found == (['0.bn', '1.bn', '2.bn'], [])
    assert [type(block.bn) for block in blocks[:2]] == [nn.ReLU, nn.Identity]


def test_drawn_norms_have_the_statistics_of_what_they_see():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    network[1].eval()
    x = 3 + 2 * torch.randn(8, 3, 5, 5)
    draw_norms(network, lambda: network(x))
    values = network[0](x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(network[1].running_mean, values.mean(1))
    torch.testing.assert_close(network[1].running_var, values.var(1))
    assert network[1].weight.min() >= 0.5 and network[1].weight.std() > 0 and network[1].bias.std() > 0
    assert not network[1].training and network[2].training and network[1].momentum == 0.1
