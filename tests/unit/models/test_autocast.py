# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Half precision: finite, and as near to float32 as the format allows, also for values near its end."""
import copy

import pytest
import torch

from partialnet_mm.models import GaussianGate, PartialNet, SRMGate

#: Relative distance from float32 of a whole network: its measured one is a half of this at most.
TOLERANCES = {torch.bfloat16: 0.02, torch.float16: 0.003}
DTYPES = pytest.mark.parametrize('dtype', list(TOLERANCES), ids=['bfloat16', 'float16'])
DEVICES = pytest.mark.parametrize('device', [
    'cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='torch sees no GPU'))])


def require(device, dtype):
    """Skips where this torch has no autocast to the type."""
    try:
        with torch.autocast(device, dtype):
            enabled = torch.is_autocast_cpu_enabled() if device == 'cpu' else torch.is_autocast_enabled()
    except RuntimeError:
        enabled = False
    if not enabled or (device == 'cpu' and dtype == torch.float16 and not hasattr(torch.nn, 'attention')):
        pytest.skip(f'torch {torch.__version__} has no autocast to {dtype} on {device}')


def distance(out, want):
    return ((out.float() - want.float()).norm() / want.float().norm()).item()


@pytest.fixture
def backbone(tiny_arch, randomize_norms):
    return randomize_norms(PartialNet(tiny_arch, out_indices=(0, 1, 2, 3))).eval()


@DEVICES
@DTYPES
@pytest.mark.parametrize('merged', [False, True])
@pytest.mark.parametrize('batch', [1, 3])
def test_inference(backbone, device, dtype, merged, batch):
    require(device, dtype)
    if merged:
        backbone.switch_to_deploy()
    backbone, images = backbone.to(device), torch.randn(batch, 3, 96, 65, device=device)
    with torch.no_grad():
        wanted = backbone(images)
        with torch.autocast(device, dtype):
            outs = backbone(images)
    for out, want in zip(outs, wanted):
        assert distance(out, want) < TOLERANCES[dtype]


@DEVICES
@DTYPES
def test_training(backbone, device, dtype):
    require(device, dtype)
    backbone = backbone.to(device).train()
    full = copy.deepcopy(backbone)
    images = torch.randn(8, 3, 96, 96, device=device)
    with torch.autocast(device, dtype):
        outs = backbone(images)
    wanted = full(images)
    for model, maps in ((backbone, outs), (full, wanted)):
        sum(x.float().square().mean() for x in maps).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    # Batch norms divide by what differs between the images, which multiplies the error of rounding.
    for out, want in zip(outs, wanted):
        assert distance(out, want) < 3 * TOLERANCES[dtype]
    gradients = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (backbone, full)]
    assert distance(*gradients) < 6 * TOLERANCES[dtype]


@DTYPES
@pytest.mark.parametrize('merged', [False, True])
def test_model_in_half_precision(backbone, dtype, merged):
    if dtype == torch.float16 and not hasattr(torch.nn, 'attention'):
        pytest.skip('torch 2.1 has no convolution in float16 on a CPU')
    if merged:
        backbone.switch_to_deploy()
    images = torch.randn(2, 3, 96, 65)
    with torch.no_grad():
        wanted = backbone(images)
        outs = backbone.to(dtype)(images.to(dtype))
    for out, want in zip(outs, wanted):
        assert out.dtype == dtype
        assert distance(out, want) < TOLERANCES[dtype]


@DEVICES
@DTYPES
@pytest.mark.parametrize('gate_type', [GaussianGate, SRMGate])
@pytest.mark.parametrize('autocast', [False, True])
def test_statistics_of_large_values_do_not_overflow(gate_type, autocast, dtype, device):
    """The square of a deviation of 300 is beyond float16 already; these deviate by tens of thousands."""
    require(device, dtype)
    gate = gate_type(8).to(device).eval()
    # Large statistics would saturate the gates, and hide what they are.
    gate.conv.weight.data *= 2**-13
    x = (torch.randn(2, 8, 14, 14, device=device) * 30000).clamp(-65000, 65000).to(dtype)
    with torch.no_grad():
        want = gate(x.float())
        if autocast:
            with torch.autocast(device, dtype):
                found = gate(x)
        else:
            found = gate.to(dtype)(x)
    assert want.min() > 0.1 and want.max() < 0.9 and want.std() > 0.01
    assert (found.float() - want).abs().max() < 0.02
