# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Inputs that could make a NaN: outputs and gradients stay finite."""
import pytest
import torch

from partialnet_mm.models import (
    GaussianGate,
    PartialChannelAttention,
    PartialNet,
    PartialSelfAttention,
    PartialSpatialAttention,
)
from tests.helpers.libraries import parameters_without_gradient
from tests.helpers.networks import ALL, random_loss

LAYERS = dict(
    gate=lambda: GaussianGate(16),
    pat_ch=lambda: PartialChannelAttention(16),
    pat_sp=lambda: PartialSpatialAttention(16),
    pat_sf=lambda: PartialSelfAttention(16, 2))


def check_finite(module, x):
    x = x.requires_grad_()
    out = module(x)
    out.float().square().mean().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize('layer', list(LAYERS))
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('x', [
    torch.zeros(2, 16, 7, 7), torch.full((2, 16, 7, 7), 3.5), torch.full((1, 16, 7, 7), -1e4),
    torch.full((2, 16, 1, 1), 2.), torch.randn(1, 16, 1, 1), torch.randn(1, 16, 1, 9), 1e6 * torch.randn(2, 16, 5, 5),
    1e-20 * torch.randn(2, 16, 5, 5)
], ids=['zeros', 'constant', 'large constant', 'one pixel', 'batch 1, one pixel', 'one row', 'huge', 'tiny'])
def test_layers_stay_finite(layer, training, x):
    module = LAYERS[layer]().train(training)
    check_finite(module, x.clone())


@pytest.mark.parametrize('layer', list(LAYERS))
def test_reduced_precision_stays_finite(layer):
    module = LAYERS[layer]().train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        check_finite(module, 1e4 * torch.randn(2, 16, 6, 6))


@pytest.mark.parametrize('table', [-1e4, 1e4])
def test_extreme_position_biases_stay_finite(table):
    module = PartialSelfAttention(16, 2)
    torch.nn.init.constant_(module.position_bias.table, table)
    with torch.no_grad():
        module.position_bias.table[:, 3] = -table
    check_finite(module, torch.randn(2, 16, 7, 7))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        check_finite(module, torch.randn(2, 16, 7, 7))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='half precision overflows on a GPU only')
@pytest.mark.parametrize('layer', list(LAYERS))
@pytest.mark.parametrize('scale', [1e3, 6e4])
def test_half_precision_stays_finite(layer, scale):
    module = LAYERS[layer]().cuda().train()
    x = (scale * torch.randn(4, 16, 8, 8, device='cuda')).clamp(-6e4, 6e4).half()
    with torch.autocast('cuda', dtype=torch.float16):
        out = module(x)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize('options', [dict(), dict(norm_eval=True), dict(norm_cfg=dict(type='SyncBN')),
                                     dict(act_cfg=dict(type='GELU')), dict(out_indices=(3, ))], ids=str)
@pytest.mark.parametrize('batch, size', [(1, (32, 32)), (1, (33, 47)), (1, (64, 64)), (2, (32, 32))])
def test_the_network_trains_on_few_pixels_and_on_constant_images(batch, size, options, tiny_arch):
    model = PartialNet(tiny_arch, **dict(dict(out_indices=ALL), **options))
    model.init_weights()
    for images in (torch.randn(batch, 3, *size), *(torch.full((batch, 3, *size), fill)
                                                   for fill in (0., 0.5, -1., 255., 1e4))):
        model.zero_grad()
        outs = model.train()(images)
        assert outs[-1].shape[2:] == (size[0] // 32, size[1] // 32)
        random_loss(outs).backward()
        assert all(torch.isfinite(out).all() for out in (*outs, *model.eval()(images)))
        assert parameters_without_gradient(model) == []
