# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from partialnet_mm.models import CBAMGate, ECAGate, GaussianGate, PartialNet, SEGate, SRMGate
from partialnet_mm.models.gates import MeanAndDeviation, build_gate
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
], ids=['constant', 'zero', 'two images', 'one pixel'])
def test_feature_maps_without_deviation(x):
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


@pytest.mark.parametrize('channels_last', [False, True])
def test_derivatives_of_the_statistics(channels_last):
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    std, mean = torch.std_mean(x, dim=(2, 3))
    torch.testing.assert_close(MeanAndDeviation.apply(x), torch.stack((mean, std), dim=2).unsqueeze(2))
    assert gradcheck(MeanAndDeviation.apply, (x, ))
    assert gradgradcheck(MeanAndDeviation.apply, (x, ))


def test_training_keeps_nothing_of_the_size_of_the_feature_map():
    gate, x = GaussianGate(6).train(), torch.randn(2, 6, 16, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        gate(x)
    large = [tensor for tensor in kept if tensor.numel() >= x.numel()]
    assert {tensor.data_ptr() for tensor in large} == {x.data_ptr()}


def test_a_gradient_penalty_has_gradients(tiny_arch):
    model = PartialNet(tiny_arch).train()
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    gradient, = torch.autograd.grad(model(x)[0].square().mean(), x, create_graph=True)
    gradient.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.stages[0][0].token_mixer.gate.conv.weight.grad.any()


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
        gate.merged()


@pytest.mark.parametrize('gate_type', [GaussianGate, SRMGate])
@pytest.mark.parametrize('size', [(5, 4), (1, 1), (14, 14)])
def test_merged_form(gate_type, size, randomize_norms):
    gate = randomize_norms(gate_type(6)).eval()
    x = torch.randn(3, 6, *size)
    expected = gate(x)
    merged = gate.merged().eval()
    torch.testing.assert_close(merged(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(gate(x), expected)  # the trained gate stays as it is
    assert isinstance(merged.conv, nn.Conv2d)
    assert [name for name, _ in merged.named_parameters()] == ['conv.weight', 'conv.bias']


def eca(x, gate):
    means = F.pad(x.mean((2, 3)), (1, 1)).unfold(1, 3, 1)  # each channel with its two neighbours
    return torch.sigmoid(means @ gate.conv.weight.flatten())


def cbam(x, gate):
    layers = [(layer.weight.flatten(1), layer.bias) for layer in (gate.reduce, gate.expand)]
    return torch.sigmoid(sum(
        F.linear(F.relu(F.linear(values, *layers[0])), *layers[1]) for values in (x.mean((2, 3)), x.amax((2, 3)))))


def srm(x, gate):
    """Each channel by itself."""
    weight = gate.conv.weight.view(-1, 2)
    logits = x.mean((2, 3)) * weight[:, 0] + x.std((2, 3)) * weight[:, 1]
    return hard_sigmoid(gate.norm(logits[:, :, None, None]))[:, :, 0, 0]


def se(x, gate):
    hidden = F.relu(x.mean((2, 3)) @ gate.reduce.weight.flatten(1).T)
    return hard_sigmoid(hidden @ gate.expand.weight.flatten(1).T)


@pytest.mark.parametrize('build, reference, hidden', [
    (ECAGate, eca, None), (lambda channels: CBAMGate(channels, reduction=4), cbam, 6), (SRMGate, srm, None),
    (SEGate, se, 6)], ids=['eca', 'cbam', 'srm', 'se'])
def test_gates_of_other_papers(build, reference, hidden, randomize_norms):
    gate = randomize_norms(build(24)).eval()
    x = torch.randn(2, 24, 5, 4)
    torch.testing.assert_close(gate(x)[:, :, 0, 0], reference(x, gate))
    assert hidden is None or gate.reduce.weight.shape == (hidden, 24, 1, 1)


@pytest.mark.parametrize('channels, kernel_size', [(24, 3), (96, 3), (192, 5), (480, 5)])
def test_kernel_of_eca_follows_the_width(channels, kernel_size):
    assert ECAGate(channels).conv.kernel_size == (kernel_size, )


@MODELS.register_module(force=True)
class ScaledGate(nn.Module):
    """A gate of a user."""

    def __init__(self, channels, scale, norm_cfg=None):
        super().__init__()
        self.channels, self.scale, self.norm_cfg = channels, scale, norm_cfg

    def forward(self, x):
        return self.scale * torch.sigmoid(x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize('gate_type', ['ScaledGate', ScaledGate])
@pytest.mark.parametrize('given, norm_cfg', [(dict(), dict(type='SyncBN')), (dict(norm_cfg=7), 7)])
def test_gates_of_users(gate_type, given, norm_cfg):
    gate = build_gate(dict(type=gate_type, scale=2., **given), 6, norm_cfg=dict(type='SyncBN'))
    assert isinstance(gate, ScaledGate)
    assert (gate.channels, gate.scale, gate.norm_cfg) == (6, 2., norm_cfg)


def test_gate_of_a_user_in_the_network_and_merged(tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, gate=dict(type='ScaledGate', scale=0.5))).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)[0]
    gates = [module for module in model.modules() if isinstance(module, ScaledGate)]
    assert [gate.channels for gate in gates] == [12, 24, 48, 48]
    assert {gate.norm_cfg['type'] for gate in gates} == {'BN'}
    model.switch_to_deploy()
    assert [module for module in model.modules() if isinstance(module, ScaledGate)] == gates
    assert (model(x)[0] - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize('gate, error, text', [
    ('max', ValueError, "gate must be one of .'gaussian', 'srm', 'se', 'eca', 'cbam'.*got 'max'"),
    (dict(scale=2), ValueError, 'gate must be one of'),
    (dict(type='NoGate'), KeyError, "'NoGate' is not registered: .*register_module.*custom_imports"),
    (dict(type='ScaledGate', scal=2), TypeError, "unexpected keyword argument 'scal'"),
])
def test_wrong_gates(gate, error, text, tiny_arch):
    with pytest.raises(error, match=text):
        PartialNet(tiny_arch, gate=gate)
