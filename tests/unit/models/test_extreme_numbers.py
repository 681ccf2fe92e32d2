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
    torch.manual_seed(0)
    module = LAYERS[layer]().train(training)
    check_finite(module, x.clone())


@pytest.mark.parametrize('layer', list(LAYERS))
def test_reduced_precision_stays_finite(layer):
    torch.manual_seed(0)
    module = LAYERS[layer]().train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        check_finite(module, 1e4 * torch.randn(2, 16, 6, 6))


@pytest.mark.parametrize('table', [-1e4, 1e4])
def test_extreme_position_biases_stay_finite(table):
    torch.manual_seed(0)
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
    torch.manual_seed(0)
    module = LAYERS[layer]().cuda().train()
    x = (scale * torch.randn(4, 16, 8, 8, device='cuda')).clamp(-6e4, 6e4).half()
    with torch.autocast('cuda', dtype=torch.float16):
        out = module(x)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize('size', [(32, 32), (33, 47)])
@pytest.mark.parametrize('fill', [0., 255.])
def test_the_network_stays_finite_at_batch_1(tiny_arch, size, fill):
    torch.manual_seed(0)
    model = PartialNet(tiny_arch, out_indices=(0, 1, 2, 3), norm_eval=True).train()
    x = torch.full((1, 3, *size), fill)
    sum(out.square().mean() for out in model(x)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
