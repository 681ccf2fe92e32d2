# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import revert_sync_batchnorm
from torch import nn

from partialnet_mm.models import GaussianGate
from tests.helpers.reference_network import gaussian_gate, hard_sigmoid


def reference(gate, x, training):
    norm = gate.norm
    logits = gaussian_gate(gate.conv.weight, x)
    return hard_sigmoid(F.batch_norm(logits, norm.running_mean.clone(), norm.running_var.clone(), norm.weight,
                                     norm.bias, training, eps=1e-5))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(5, 7), (1, 2), (8, 8)])
def test_equals_a_convolution_of_kernel_1_2(training, size, randomize_norms):
    gate = randomize_norms(GaussianGate(6)).train(training)
    assert gate.conv.weight.shape == (6, 6, 1, 2)
    x = (torch.randn(4, 6, *size) * 3 + 1).requires_grad_()
    expected = reference(gate, x, training)
    out = gate(x)
    assert out.shape == (4, 6, 1, 1)
    assert 0 <= out.min() < out.max() <= 1
    torch.testing.assert_close(out, expected)

    leaves = (x, gate.conv.weight, gate.norm.weight, gate.norm.bias)
    direction = torch.randn_like(out)
    wanted = torch.autograd.grad(expected, leaves, direction)
    for got, want in zip(torch.autograd.grad(out, leaves, direction), wanted):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_statistics_are_mean_then_unbiased_deviation():
    gate = GaussianGate(1).eval()
    x = torch.tensor([1., 2., 3., 6.]).view(1, 1, 2, 2)
    for weight, expected in (([1., 0.], 3.), ([0., 1.], (14 / 3)**0.5)):
        with torch.no_grad():
            gate.conv.weight.copy_(torch.tensor(weight).view(1, 1, 1, 2))
            logit = expected / (1 + 1e-5)**0.5
            torch.testing.assert_close(gate(x).item(), min(1., (logit + 3) / 6), rtol=1e-6, atol=0)


@pytest.mark.parametrize('x', [
    torch.full((1, 6, 4, 4), 0.7), torch.zeros(1, 6, 4, 4), torch.full((2, 6, 4, 4), -3.), torch.randn(3, 6, 1, 1)
], ids=['constant', 'zero', 'two images', 'one place'])
def test_maps_without_deviation(x):
    gate = GaussianGate(6).train()
    x = x.clone().requires_grad_()
    out = gate(x)
    # The deviation is zero, not NaN: the gate is that of the mean alone.
    mean_only = torch.stack((x.mean((2, 3)), torch.zeros(x.shape[:2])), -1).unsqueeze(2)
    logits = F.conv2d(mean_only, gate.conv.weight)
    if len(x) > 1:
        logits = (logits - logits.mean(0)) / (logits.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(out, hard_sigmoid(logits), rtol=1e-4, atol=1e-4)
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in gate.parameters())


@pytest.mark.parametrize('norm', ['BN', 'SyncBN', 'reverted SyncBN'])
def test_one_image_trains_by_the_running_statistics(norm, randomize_norms):
    gate = GaussianGate(6, norm_cfg=dict(type=norm.split()[-1]))
    if norm.startswith('reverted'):
        gate = revert_sync_batchnorm(gate)
    randomize_norms(gate).train()
    before = {name: value.clone() for name, value in gate.norm.named_buffers()}
    x = torch.randn(1, 6, 5, 5)
    out = gate(x)
    torch.testing.assert_close(out, reference(gate, x, training=False))
    assert all(torch.equal(value, before[name]) for name, value in gate.norm.named_buffers())
    out.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in gate.parameters())


def test_two_images_update_the_statistics():
    gate = GaussianGate(6).train()
    x = torch.randn(2, 6, 5, 5)
    logits = gaussian_gate(gate.conv.weight, x)
    gate(x)
    assert gate.norm.num_batches_tracked == 1
    torch.testing.assert_close(gate.norm.running_mean, 0.1 * logits.mean((0, 2, 3)))
    torch.testing.assert_close(gate.norm.running_var, 0.9 + 0.1 * logits.var((0, 2, 3)))


def test_other_norms():
    gate = GaussianGate(6, norm_cfg=dict(type='GN', num_groups=2)).train()
    x = torch.randn(1, 6, 5, 5)
    expected = hard_sigmoid(F.group_norm(gaussian_gate(gate.conv.weight, x), 2))
    torch.testing.assert_close(gate(x), expected)
    with pytest.raises(TypeError, match='the norm of GaussianGate is a GroupNorm'):
        gate.switch_to_deploy()


def test_merged_form(randomize_norms):
    gate = randomize_norms(GaussianGate(6)).eval()
    x = torch.randn(3, 6, 5, 4)
    expected = gate(x)
    gate.switch_to_deploy()
    torch.testing.assert_close(gate(x), expected, rtol=1e-5, atol=1e-6)
    assert gate.norm is None
    conv = gate.conv
    gate.switch_to_deploy()
    assert gate.conv is conv

    deployed = GaussianGate(6, deploy=True).eval()
    assert isinstance(deployed.conv, nn.Conv2d)
    deployed.load_state_dict(gate.state_dict())
    assert torch.equal(deployed(x), gate(x))
