# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""DPConv and PAT_ch of learned ratio: one function in training and evaluation, and gradients to every gate."""
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.registry import MODELS
from torch import nn

from partialnet_mm.analysis.flops import count_multiply_adds
from partialnet_mm.models import (
    DPConv,
    DPConvChannelAttention,
    PartialChannelAttention,
    PartialConv,
    PartialNet,
    SplitGates,
)
from partialnet_mm.models.dpconv.fixed_ratios import block_ratios, fix_ratios

BINARY_3 = list(itertools.product((0, 1), repeat=3))
LEGAL_3 = [binary for binary in BINARY_3 if list(binary) == sorted(binary)]


def set_gates(layer, binary):
    with torch.no_grad():
        layer.split_gates.t.copy_(torch.tensor(binary) - 0.5)
    return layer


def random_bias(layer):
    if layer.conv.bias is not None:
        nn.init.normal_(layer.conv.bias)
    return layer


def definition(layer, x, gates):
    """DPConv for real gates, from Kronecker products: each weight's entry of M, and 1 - M's diagonal of the input."""
    odd = layer.split_gates.odd_factor
    one = torch.ones((), dtype=x.dtype)
    blocks = [torch.stack((torch.stack((one, g)), torch.stack((g, g)))) for g in gates]
    mask = functools.reduce(torch.kron, [*blocks, torch.ones(odd, odd, dtype=x.dtype)])
    conv, diagonal = layer.conv, mask.diagonal()
    out = F.conv2d(x, conv.weight * mask[:, :, None, None], None if conv.bias is None else conv.bias * diagonal,
                   conv.stride, conv.padding, conv.dilation)
    rest = x if conv.stride == (1, 1) else F.avg_pool2d(x, conv.stride, ceil_mode=True)
    return out + (1 - diagonal)[:, None, None] * rest


LAYERS = [dict(kernel_size=3, padding=1, bias=False), dict(kernel_size=5, padding=4, dilation=2, bias=True),
          dict(kernel_size=3, padding=1, stride=2, bias=False), dict(kernel_size=(1, 3), padding=(0, 1), bias=True),
          dict(kernel_size=3, padding='same', padding_mode='reflect', bias=True)]


@pytest.mark.parametrize('options', LAYERS, ids=str)
@pytest.mark.parametrize('channels', [8, 24])
def test_training_and_evaluation_compute_the_same(channels, options):
    layer = random_bias(DPConv(channels, channels, **options))
    x = torch.randn(2, channels, 9, 7)
    with torch.no_grad():
        outs = []
        for binary in BINARY_3:
            set_gates(layer, binary)
            trained, evaluated = layer.train()(x), layer.eval()(x)
            assert trained.shape == layer.conv(x).shape
            torch.testing.assert_close(trained, evaluated, rtol=1e-5, atol=1e-6)
            if options.get('padding_mode') is None and options['padding'] != 'same':
                torch.testing.assert_close(evaluated, definition(layer, x, torch.tensor(binary).float()), rtol=1e-5,
                                           atol=1e-6)
            outs.append(evaluated)
    # Each combination of gates is another function.
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(outs, 2))


@pytest.mark.parametrize('binary', LEGAL_3, ids=str)
@pytest.mark.parametrize('channels', [8, 24])
def test_equals_partial_conv_of_its_ratio(channels, binary):
    layer = set_gates(DPConv(channels, channels, 3, padding=1, bias=False), binary).eval()
    first = channels // 2**binary.count(0)
    fixed = PartialConv(channels, first / channels)
    fixed.conv.weight.data = layer.conv.weight.data[:first, :first]
    x = torch.randn(2, channels, 6, 6)
    torch.testing.assert_close(layer(x), fixed(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(layer(x)[:, first:], x[:, first:])


@pytest.mark.parametrize('options', LAYERS[:3], ids=str)
@pytest.mark.parametrize('binary', BINARY_3, ids=str)
def test_gate_gradients_are_those_of_the_definition(options, binary):
    """The layer is linear in each gate, so a gradient is exactly what opening instead of closing changes."""
    layer = set_gates(random_bias(DPConv(24, 24, **options)).double(), binary)
    x = torch.randn(2, 24, 9, 7, dtype=torch.float64)
    probe = torch.randn_like(layer(x))
    (layer(x) * probe).sum().backward()
    layer.eval()
    for k in range(3):
        ends = []
        for value in (0., 1.):
            gates = torch.tensor(binary, dtype=torch.float64)
            gates[k] = value
            ends.append((definition(layer, x, gates) * probe).sum().item())
            set_gates(layer, gates.tolist())
            assert (layer(x) * probe).sum().item() == pytest.approx(ends[-1])
        assert layer.split_gates.t.grad[k].item() == pytest.approx(ends[1] - ends[0])
        assert abs(layer.split_gates.t.grad[k]) > 1e-3
    used = definition(layer, x, torch.tensor(binary, dtype=torch.float64))
    weight_gradient, = torch.autograd.grad((used * probe).sum(), layer.conv.weight)
    torch.testing.assert_close(layer.conv.weight.grad, weight_gradient)


def test_evaluation_touches_only_the_used_channels():
    layer = DPConv(32, 32, 3, padding=1, bias=False)
    for binary in itertools.product((0, 1), repeat=5):
        set_gates(layer, binary)
        used = 32 // 2**binary.count(0)
        assert count_multiply_adds(layer, (2, 32, 6, 5)) == 2 * 6 * 5 * 9 * used**2
        layer.eval()
        with torch.no_grad():
            layer.conv.weight.fill_(float('nan'))
            index, _ = layer.split_gates.partition()
            block = torch.arange(32)[index]
            layer.conv.weight[block[:, None], block] = 1.
            assert torch.isfinite(layer(torch.randn(1, 32, 4, 4))).all()


@pytest.mark.parametrize('form', ['dpconv', 'dpconv_ch'])
def test_gates_stay_float32_under_mixed_precision(form):
    layer = (DPConv(32, 32, 3, padding=1, bias=False) if form == 'dpconv' else DPConvChannelAttention(32)).train()
    x = torch.randn(8, 32, 12, 12)
    probe = torch.randn_like(x)
    (layer(x) * probe).sum().backward()
    expected, layer.split_gates.t.grad = layer.split_gates.t.grad, None
    with torch.autocast('cpu', torch.bfloat16):
        masks, cost = layer.split_gates.masks(), layer.split_gates.cost()
        out = layer(x)
        halved = layer(x.bfloat16())
    assert layer.split_gates.t.dtype == cost.dtype == masks[0].dtype == masks[1].dtype == torch.float32
    assert (out.dtype, halved.dtype) == (torch.float32, torch.bfloat16)
    (out * probe).sum().backward()
    gradient = layer.split_gates.t.grad
    assert gradient.dtype == torch.float32
    assert (gradient - expected).norm() < 0.02 * expected.norm()
    layer.eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert layer(x).dtype == torch.float32 and layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize('binary', LEGAL_3, ids=str)
@pytest.mark.parametrize('batch', [1, 4])
def test_attention_form_equals_pat_ch_of_its_ratio(binary, batch, randomize_norms):
    searched = randomize_norms(set_gates(DPConvChannelAttention(24), binary))
    ratio = searched.split_gates.split_ratio
    fixed = PartialChannelAttention(24, ratio)
    state = {f'stages.0.0.token_mixer.{name}': value for name, value in searched.state_dict().items()}
    fixed.load_state_dict({name.rpartition('token_mixer.')[2]: value for name, value in fix_ratios(state).items()})
    assert block_ratios(state) == [ratio]
    # A norm of four values multiplies the error of rounding.
    searched, fixed, x = searched.double(), fixed.double(), torch.randn(batch, 24, 6, 5, dtype=torch.float64)
    probe = torch.randn_like(x)
    torch.testing.assert_close(searched.eval()(x), fixed.eval()(x))
    trained, expected = searched.train()(x), fixed.train()(x)
    torch.testing.assert_close(trained, expected)
    (trained * probe).sum().backward()
    (expected * probe).sum().backward()
    first = int(24 * ratio)
    torch.testing.assert_close(searched.conv.weight.grad[:first, :first], fixed.conv.weight.grad)
    assert searched.conv.weight.grad[first:].abs().sum() == searched.conv.weight.grad[:, first:].abs().sum() == 0
    if ratio < 1:
        torch.testing.assert_close(searched.gate.conv.weight.grad[first:, first:], fixed.gate.conv.weight.grad)
        # What a step leaves behind serves the next evaluation.
        torch.testing.assert_close(searched.eval()(x), fixed.eval()(x))


@pytest.mark.parametrize('binary', [(1, 0, 1), (0, 1, 0), (1, 1, 0)], ids=str)
def test_attention_form_out_of_order_trains_and_evaluates_the_same(binary, randomize_norms):
    layer = randomize_norms(set_gates(DPConvChannelAttention(24), binary)).train()
    for norm in (layer.norm, layer.gate.norm):
        norm.eval()
    x = torch.randn(2, 24, 6, 5)
    trained = layer(x)
    torch.testing.assert_close(layer.eval()(x), trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('binary', BINARY_3, ids=str)
def test_attention_form_gradients_are_those_of_its_masks(binary, randomize_norms):
    """Numerically: the masks are linear in each gate, and the layer is smooth in the masks."""
    layer = randomize_norms(set_gates(DPConvChannelAttention(24).double(), binary)).train()
    for norm in (layer.norm, layer.gate.norm):
        norm.eval()
    x = torch.randn(2, 24, 6, 5, dtype=torch.float64)
    probe = torch.randn_like(x)

    def reference(gates):
        out = definition(layer, x, gates)
        blocks = [torch.tensor([[1., g], [g, g]], dtype=x.dtype) for g in gates.tolist()]
        mask = functools.reduce(torch.kron, [*blocks, torch.ones(3, 3, dtype=x.dtype)])
        u = mask.diagonal()
        weight = layer.gate.conv.weight[:, :, 0] * (1 - u[:, None] - u[None] + mask)[..., None]
        mean, std = x.mean((2, 3)), x.std((2, 3))
        logits = mean @ weight[..., 0].T + std @ weight[..., 1].T
        attended = layer.norm(x * F.hardsigmoid(layer.gate.norm(logits[:, :, None, None])))
        return ((out + (1 - u)[:, None, None] * (attended - x)) * probe).sum().item()

    (layer(x) * probe).sum().backward()
    step = 1e-5
    with torch.no_grad():
        for k in range(3):
            ends = []
            for sign in (-1, 1):
                gates = torch.tensor(binary, dtype=torch.float64)
                gates[k] += sign * step
                ends.append(reference(gates))
            assert layer.split_gates.t.grad[k].item() == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-5)
            assert abs(layer.split_gates.t.grad[k]) > 1e-3


@pytest.mark.parametrize('mixers', ['dpconv', ('dpconv_ch', 'dpconv_ch', 'dpconv_ch', 'dpconv')], ids=str)
@pytest.mark.parametrize('spatial_attention', ['partial', 'none'])
def test_searchable_network(mixers, spatial_attention, tiny_arch):
    model = PartialNet(tiny_arch, token_mixers=mixers, spatial_attention=spatial_attention).train()
    model.init_weights()
    out, = model(torch.randn(4, 3, 64, 64))
    (out * torch.randn_like(out)).sum().backward()
    gates = [module for module in model.modules() if isinstance(module, SplitGates)]
    assert [g.channels for g in gates] == [16, 32, 64, 64, 128]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
        if name.endswith('split_gates.t'):
            assert (parameter.grad != 0).all(), name
    with torch.no_grad():  # truncated normal, as in every PartialNet
        assert model.stages[3][0].token_mixer.conv.weight.std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize('arch', ['t0', 't1', 't2', 's', 'm', 'l'])
def test_every_variant_can_be_searched(arch):
    with torch.device('meta'):
        model = PartialNet(arch, token_mixers='dpconv')
    assert sum(isinstance(module, SplitGates) for module in model.modules()) == sum(model.depths)


def test_starts_at_one_ratio_a_block(tiny_arch):
    ratios = [1 / 16, 0.5, 1, 0.25, 0.125]
    model = PartialNet(tiny_arch, token_mixers='dpconv', split_ratio=ratios)
    assert block_ratios(model.state_dict()) == ratios
    with pytest.raises(ValueError, match=r'for 16 channels one of 1, 0.5, 0.25, 0.125, 0.0625; got 0.3'):
        PartialNet(tiny_arch, token_mixers='dpconv', split_ratio=0.3)
    with pytest.raises(ValueError, match='one for each of the 5 blocks'):
        PartialNet(tiny_arch, token_mixers='dpconv', split_ratio=ratios[:4])


@pytest.mark.parametrize('mixers', ['dpconv', 'dpconv_ch'])
def test_merging_and_checkpointing_keep_the_function(mixers, tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, token_mixers=mixers)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, = model(x)
        model.switch_to_deploy()
        merged, = model(x)
    assert (merged - expected).norm() < 1e-5 * expected.norm()

    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = PartialNet(tiny_arch, token_mixers=mixers, with_cp=with_cp).train()
        model.init_weights()
        model(x)[0].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_frozen_stages_keep_their_gates(tiny_arch):
    model = PartialNet(tiny_arch, token_mixers='dpconv', frozen_stages=2).train()
    model(torch.randn(2, 3, 64, 64))[0].sum().backward()
    learning = [gates.t.requires_grad for gates in model.modules() if isinstance(gates, SplitGates)]
    assert learning == [False, False, True, True, True]


@pytest.mark.parametrize('arguments, fragments', [
    ((8, 16, 3, 1, 1), ('keeps the width', 'in_channels=8 and out_channels=16')),
    ((9, 9, 3, 1, 1), ('channels=9', 'no factor 2')),
    ((8, 8, 2), ('kernel_size', 'odd', 'got 2')),
    ((8, 8, 3), ('padding', '(1, 1)', 'got 0')),
    ((8, 8, 3, 1, 2), ('padding', '(1, 1)', 'got 2')),
    ((8, 8, 3, 1, 1, 2), ('padding', '(2, 2)', 'dilation=2', 'got 1')),
])
def test_refuses_where_it_cannot_apply(arguments, fragments):
    with pytest.raises(ValueError) as error:
        DPConv(*arguments)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_refuses_unknown_arguments_and_norms_across_channels():
    with pytest.raises(TypeError, match="DPConv has no argument 'ratio'.*did you mean"):
        DPConv(8, 8, 3, padding=1, ratio=0.5)
    with pytest.raises(ValueError, match="'dpconv_ch' needs a norm that treats each channel by itself.*'GN'"):
        DPConvChannelAttention(8, norm_cfg=dict(type='GN', num_groups=2))
    with pytest.raises(ValueError, match="gate='srm' has no effect.*no channel attention"):
        PartialNet('t0', token_mixers='dpconv_ch', gate='srm')


def test_conv_cfg_builds_it_where_the_width_is_kept():
    cfg = dict(type='DPConv', split_ratio=0.5)
    layer = build_conv_layer(cfg, 16, 16, 3, stride=2, padding=1, bias=False)
    assert type(layer) is DPConv and layer.split_gates.split_ratio == 0.5 and layer.stride == (2, 2)
    grouped = build_conv_layer(cfg, 16, 16, 3, padding=1, groups=16)
    assert type(grouped) is DPConv and grouped.conv.weight.shape == (16, 16, 3, 3)
    assert type(build_conv_layer(cfg, 16, 16, 1)) is nn.Conv2d
    assert type(build_conv_layer(cfg, 16, 32, 3, padding=1)) is nn.Conv2d
    with pytest.raises(ValueError, match='channels=15'):
        build_conv_layer(cfg, 15, 15, 3, padding=1)
    module = ConvModule(16, 16, 3, padding=1, conv_cfg=cfg, norm_cfg=dict(type='BN'))
    assert type(module.conv) is DPConv and module(torch.randn(2, 16, 8, 8)).shape == (2, 16, 8, 8)


@pytest.mark.parametrize('library', ['mmpretrain', 'mmdet'])
def test_conv_cfg_in_a_resnet(library):
    registry = pytest.importorskip(f'{library}.registry').MODELS
    model = registry.build(dict(type='ResNet', depth=50, conv_cfg=dict(type='DPConv')))
    layers = [name for name, module in model.named_modules() if isinstance(module, DPConv)]
    assert layers == [f'layer{i}.{j}.conv2' for i, depth in ((1, 3), (2, 4), (3, 6), (4, 3)) for j in range(depth)]
    outs = model(torch.randn(2, 3, 64, 64))
    plain = registry.build(dict(type='ResNet', depth=50))(torch.zeros(1, 3, 64, 64))
    assert [out.shape[1:] for out in outs] == [out.shape[1:] for out in plain]
    outs[-1].square().sum().backward()
    for gates in model.modules():
        if isinstance(gates, SplitGates):
            assert gates.t.grad.abs().sum() > 0


def test_builds_from_the_root_registry():
    assert type(MODELS.build(dict(type='DPConv', in_channels=8, out_channels=8, kernel_size=3, padding=1))) is DPConv
