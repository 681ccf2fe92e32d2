# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""PATConv as a convolution layer: by itself, and by conv_cfg in networks of the libraries."""
import copy
from logging.handlers import BufferingHandler

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer, fuse_conv_bn
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.logging.logger import FilterDuplicateWarning
from mmengine.registry import HOOKS, MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from partialnet_mm.models import PATConv2d, SEGate, merge_following_norms, merge_model, replace_convs, require_patconv
from tests.helpers.libraries import parameters_without_gradient
from tests.helpers.networks import random_loss, relative_error
from tests.helpers.reference_network import gaussian_gate, hard_sigmoid

PATCONV = dict(type='PATConv')


def batch_norm(norm, x):
    shape = (1, -1, 1, 1)
    scale = norm.weight.view(shape) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return (x - norm.running_mean.view(shape)) * scale + norm.bias.view(shape)


def reference(layer, x, kind='gaussian'):
    """PATConv from its definition: the attended part is cropped to where kernels have their middle, and averaged."""
    width = layer.split_sizes[0]
    conv = layer.conv
    convolved = F.conv2d(x[:, :width], conv.weight, conv.bias, layer.stride, layer.padding, layer.dilation, conv.groups)
    top, left = (d * (k - 1) // 2 - p for d, k, p in zip(layer.dilation, layer.kernel_size, layer.padding))
    rest = x[:, width:, top:x.shape[2] - top, left:x.shape[3] - left]
    step_y, step_x = layer.stride
    height, width = rest.shape[2:]
    rest = torch.stack([torch.stack([rest[:, :, i:i + step_y, j:j + step_x].mean((2, 3))
                                     for j in range(0, width, step_x)], -1) for i in range(0, height, step_y)], -2)
    if kind == 'self':
        rest = layer.attention(rest)
    elif kind == 'gaussian':
        gate = hard_sigmoid(batch_norm(layer.gate.norm, gaussian_gate(layer.gate.conv.weight, rest)))
        rest = batch_norm(layer.norm, rest * gate)
    elif kind != 'none':  # test_gates.py has the formulas of the others
        rest = batch_norm(layer.norm, rest * layer.gate(rest))
    return torch.cat((convolved, rest), dim=1)


GEOMETRIES = [
    dict(kernel_size=3, padding=1), dict(kernel_size=5, padding=2, bias=False),
    dict(kernel_size=7, padding=3, stride=2), dict(kernel_size=(1, 7), padding=(0, 3)),
    dict(kernel_size=(3, 1), padding='same', stride=(2, 1)),
    dict(kernel_size=3, padding=2, dilation=2), dict(kernel_size=3, padding=4, dilation=4, stride=2, groups=4),
    dict(kernel_size=3), dict(kernel_size=3, stride=2), dict(kernel_size=5, padding='valid', stride=(1, 2)),
    dict(kernel_size=5, padding=1, stride=2, groups=16), dict(kernel_size=[3, 3], padding=[0, 1], dilation=(1, 2)),
]


@pytest.mark.parametrize('size', [(14, 16), (15, 13)], ids=str)
@pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
def test_is_its_definition_in_every_geometry(geometry, size, randomize_norms):
    layer = randomize_norms(PATConv2d(16, 16, **geometry)).eval()
    x = torch.randn(2, 16, *size, requires_grad=True)
    out = layer(x)
    expected = reference(layer, x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(out)
    gradients = (torch.autograd.grad(result, x, direction)[0] for result in (out, expected))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('kernel_size, dilation', [(3, 1), (3, 2), (5, 1), (7, 1)])
def test_sizes_are_those_of_a_convolution(kernel_size, dilation, stride):
    half = dilation * (kernel_size - 1) // 2
    for padding in range(half + 1):
        for size in range(2 * half + 1, 2 * half + 8):
            arguments = (4, 4, kernel_size, stride, padding, dilation)
            x = torch.randn(1, 4, size, size + 1)
            assert PATConv2d(*arguments).eval()(x).shape == nn.Conv2d(*arguments)(x).shape


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('conv', ['dense', 'depthwise'])
@pytest.mark.parametrize('kind', ['gaussian', 'srm', 'se', 'eca', 'cbam', 'self', 'none'])
def test_gates_convolutions_and_the_merged_form(kind, conv, stride, randomize_norms):
    options = dict(kernel_size=3, stride=stride, padding=1, split_ratio=0.5, gate=kind, conv=conv)
    layer = randomize_norms(PATConv2d(16, 16, **options)).eval()
    assert layer.conv.weight.shape == ((8, 8, 3, 3) if conv == 'dense' else (8, 1, 3, 3))
    nn.init.normal_(layer.conv.bias)
    if kind == 'self':
        nn.init.normal_(layer.attention.position_bias.table)
    x = torch.randn(3, 16, 9, 8)
    random_loss([layer.train()(x)]).backward()
    assert parameters_without_gradient(layer) == []
    if kind != 'cbam':  # of so few channels it has one hidden unit, which may be off
        assert all(p.grad.abs().sum() > 0 for p in layer.parameters())
    layer.eval()
    with torch.no_grad():
        expected = reference(layer, x, kind)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        layer.switch_to_deploy()
        assert relative_error(layer(x), expected) < 1e-5
        assert not any(isinstance(module, _BatchNorm) for module in layer.modules())
        weights = {name: value.clone() for name, value in layer.state_dict().items()}
        layer.switch_to_deploy()
        assert all(torch.equal(value, weights[name]) for name, value in layer.state_dict().items())

        deployed = PATConv2d(16, 16, deploy=True, **options)
        deployed.load_state_dict(layer.state_dict())
        assert torch.equal(deployed(x), layer(x))

        # the batch norm that follows in a network
        norm = randomize_norms(nn.BatchNorm2d(16)).eval()
        expected = norm(expected)
        layer.merge_norm(norm)
        assert relative_error(layer(x), expected) < 1e-5


def test_a_ratio_of_one_is_the_convolution():
    layer = PATConv2d(6, 6, 3, padding=1, split_ratio=1)
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(layer(x), F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1))
    layer.switch_to_deploy()
    assert set(layer.state_dict()) == {'conv.weight', 'conv.bias'}
    norm = nn.BatchNorm2d(6)
    norm(torch.randn(8, 6, 2, 2) * 3 + 1)
    expected = norm.eval()(layer(x))
    layer.merge_norm(norm)
    assert relative_error(layer(x), expected) < 1e-5


def test_none_passes_the_rest_through_unchanged():
    x = torch.randn(2, 8, 5, 5)
    out = PATConv2d(8, 8, 3, padding=1, gate='none')(x)
    assert torch.equal(out[:, 2:], x[:, 2:])


def test_trains_on_one_image_and_normalizes_by_the_batch():
    layer = PATConv2d(16, 16, 3, stride=2, padding=1)
    random_loss([layer(torch.randn(1, 16, 2, 2))]).backward()
    assert parameters_without_gradient(layer) == []
    attended = layer(torch.randn(2, 16, 8, 8))[:, 4:]
    torch.testing.assert_close(attended.mean((0, 2, 3)), torch.zeros(12), atol=1e-5, rtol=0)
    assert layer.norm.num_batches_tracked == 1


def test_norm_eval():
    layer = PATConv2d(8, 8, 3, norm_eval=True)
    assert layer.training and not layer.norm.training and not layer.gate.norm.training
    assert not nn.Sequential(layer).train()[0].norm.training
    assert PATConv2d(8, 8, 3).norm.training


class NormEval(nn.Sequential):
    """A network whose norm_eval sets the norms of all layers, as mmdet's ResNet."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


@pytest.mark.parametrize('owner, warned', [('layer', True), ('network', True), ('nobody', False)])
def test_norm_eval_without_statistics_warns_once(owner, warned, randomize_norms):
    """For all layers together, at the first training step; not with statistics, nor in evaluation."""
    layers = [PATConv2d(8, 8, 3, norm_eval=owner == 'layer') for _ in range(3)]
    network = (NormEval if owner == 'network' else nn.Sequential)(*layers)
    log = BufferingHandler(100)
    log.addFilter(FilterDuplicateWarning())  # as of the handlers that mmengine's loggers write with
    MMLogger.get_current_instance().addHandler(log)
    loaded = randomize_norms(copy.deepcopy(network))
    for ready in (copy.deepcopy(network).eval(), loaded.train()):
        ready(torch.randn(2, 8, 9, 9))
    assert log.buffer == []
    for _ in range(2):
        network.train()(torch.randn(2, 8, 9, 9))
    texts = [record.getMessage() for record in log.buffer]
    assert len(texts) == warned and all('batch norms of PATConv' in text and 'WITHOUT NORM' in text for text in texts)


@pytest.mark.parametrize('merged', [False, True], ids=['trained', 'merged'])
def test_mixed_precision_and_channels_last(merged, randomize_norms):
    layer = randomize_norms(PATConv2d(16, 16, 3, padding=1)).eval()
    x = torch.randn(2, 16, 12, 12)
    expected = layer(x)
    if merged:
        layer.switch_to_deploy()
    with torch.autocast('cpu', torch.bfloat16):
        assert relative_error(layer(x).float(), expected) < 0.05
    out = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert relative_error(out, expected) < 1e-5


def test_other_norms_and_their_merging():
    layer = PATConv2d(16, 16, 3, norm_cfg=dict(type='GN', num_groups=2))
    assert isinstance(layer.norm, nn.GroupNorm) and isinstance(layer.gate.norm, nn.GroupNorm)
    x = torch.randn(2, 16, 5, 5)
    expected = layer(x)
    for merge in (layer.switch_to_deploy, lambda: layer.merge_norm(nn.BatchNorm2d(16))):
        with pytest.raises(TypeError, match='the norm of PATConv2d is a GroupNorm'):
            merge()
    with pytest.raises(TypeError, match='the norm after PATConv2d is a GroupNorm'):
        layer.merge_norm(nn.GroupNorm(2, 16))
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize('change, message', [
    (dict(out_channels=32), 'keeps the width, got in_channels=16 and out_channels=32'),
    (dict(kernel_size=4), 'kernel_size of PATConv2d must be odd, got 4'),
    (dict(kernel_size=(3, 2)), r'kernel_size of PATConv2d must be odd, got \(3, 2\)'),
    (dict(stride=3), 'stride of PATConv2d must be 1 or 2, got 3'),
    (dict(padding=2), r'at most half the kernel, \(1, 1\) for kernel_size=3 and dilation=1, got 2'),
    (dict(padding='full'), "must be sizes, 'same' or 'valid', got 'full'"),
    (dict(split_ratio=0.2), r'split_ratio=0\.2 does not divide 16 channels: 3\.2 is no number of channels'),
    (dict(split_ratio=1.5), r'split_ratio must lie in \(0, 1\], got 1\.5'),
    (dict(in_channels=18, out_channels=18), r'split_ratio=0\.25 does not divide 18 channels: 4\.5'),
    (dict(in_channels=2, out_channels=2), r'split_ratio=0\.25 leaves no channel of 2'),
    (dict(gate='softmax'), r"must be one of \(.*'self', 'none'\) or dict\(type=...\), got 'softmax'"),
    (dict(conv='grouped'), r"conv of PATConv2d must be one of \('dense', 'depthwise'\), got 'grouped'"),
    (dict(gat='srm'), "PATConv2d has no argument 'gat' .*did you mean 'gate'"),
], ids=str)
def test_bad_arguments(change, message):
    error = TypeError if 'gat' in change else ValueError
    with pytest.raises(error, match=message):
        PATConv2d(**dict(dict(in_channels=16, out_channels=16, kernel_size=3), **change))


@pytest.mark.parametrize('arguments', [
    dict(in_channels=16, out_channels=16, kernel_size=1), dict(in_channels=16, out_channels=16, kernel_size=(1, 1)),
    dict(in_channels=3, out_channels=64, kernel_size=7, stride=2, padding=3, bias=False),
    dict(in_channels=8, out_channels=16, kernel_size=2, stride=2),
    dict(in_channels=8, out_channels=16, kernel_size=3, dilation=2, groups=4, padding_mode='circular'),
], ids=str)
def test_other_layers_stay_plain(arguments):
    layer = build_conv_layer(dict(type='PATConv', gate='srm', split_ratio=0.5), **arguments)
    assert type(layer) is nn.Conv2d
    assert repr(layer) == repr(nn.Conv2d(**arguments))


@pytest.mark.parametrize('scope', [None, 'mmpretrain', 'mmdet', 'mmseg'])
def test_registered_for_every_library(scope):
    if scope:
        pytest.importorskip(scope)
    registry = MODELS if scope is None else __import__(f'{scope}.registry', fromlist=['MODELS']).MODELS
    assert isinstance(registry.build(dict(PATCONV, in_channels=8, out_channels=8, kernel_size=3)), PATConv2d)


@pytest.mark.parametrize('options', [dict(), dict(padding_mode='reflect'), dict(order=('act', 'conv', 'norm')),
                                     dict(order=('norm', 'act', 'conv')), dict(groups=16, stride=2)], ids=str)
def test_in_a_conv_module(options, randomize_norms):
    arguments = dict(in_channels=16, out_channels=16, kernel_size=3, padding=1, norm_cfg=dict(type='BN'), **options)
    module = randomize_norms(ConvModule(conv_cfg=dict(type='PATConv', gate='se', split_ratio=0.5), **arguments)).eval()
    assert isinstance(module.conv.gate, SEGate) and module.conv.split_sizes == (8, 8)
    plain = ConvModule(**arguments)
    names = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'dilation', 'transposed', 'output_padding',
             'groups')
    assert [getattr(module, name) for name in names] == [getattr(plain, name) for name in names]
    assert module.conv.conv.bias is None
    x = torch.randn(2, 16, 7, 8)
    with torch.no_grad():
        expected = module(x)
        assert expected.shape == plain(x).shape
        follows = options.get('order', ('conv', 'norm', 'act')).index('norm') > 1 or not options.get('order')
        assert merge_following_norms(module) == follows
        assert isinstance(module.norm, nn.Identity) == bool(follows)
        assert relative_error(module(x), expected) < 1e-5


def test_fuse_conv_bn_leaves_the_attended_norm_alone(randomize_norms):
    # Half of the channels each, so that the norm would fit the convolution.
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16),
                            PATConv2d(16, 16, 3, split_ratio=0.5), nn.BatchNorm2d(16))
    randomize_norms(network).eval()
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        expected = network(x)
        fused = fuse_conv_bn(copy.deepcopy(network))
        assert isinstance(fused[1], nn.Identity) and isinstance(fused[2].norm, nn.BatchNorm2d)
        assert relative_error(fused(x), expected) < 1e-5
        assert merge_following_norms(network) == 1
        merged = fuse_conv_bn(network)
        assert not any(isinstance(module, _BatchNorm) for module in merged.modules())
        assert relative_error(merged(x), expected) < 1e-5


def build(scope, cfg):
    pytest.importorskip(scope)
    registry = __import__(f'{scope}.registry', fromlist=['MODELS']).MODELS
    __import__(f'{scope}.models')
    with DefaultScope.overwrite_default_scope(scope):
        return registry.build(copy.deepcopy(cfg))


# Library, backbone, number of its spatial convolutions of equal width.
HOSTS = {
    'ResNet-50': ('mmpretrain', dict(type='ResNet', depth=50), 16),
    # BasicBlocks that halve the resolution change the width in their first convolution.
    'ResNet-18': ('mmpretrain', dict(type='ResNet', depth=18, drop_path_rate=0.1), 13),
    'MobileNetV2': ('mmpretrain', dict(type='MobileNetV2'), 17),
    'RegNetX-400MF': ('mmpretrain', dict(type='RegNet', arch='regnetx_400mf'), 22),
    'ConvNeXt-atto': ('mmpretrain', dict(type='PATConvNeXt', arch='atto'), 12),
    'mmdet ResNet-50': ('mmdet', dict(type='ResNet', depth=50, style='caffe', frozen_stages=1, norm_eval=True), 16),
    'mmdet ResNeXt-50': ('mmdet', dict(type='ResNeXt', depth=50, groups=32, base_width=4), 16),
    'deep stem': ('mmdet', dict(type='ResNet', depth=50, deep_stem=True, avg_down=True, with_cp=True), 17),
    'mmseg ResNetV1c-50': ('mmseg', dict(type='ResNetV1c', depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1),
                                         contract_dilation=True), 17),
}


@pytest.mark.parametrize('name', HOSTS)
def test_networks_of_the_libraries(name, randomize_norms):
    scope, cfg, replaced = HOSTS[name]
    option = 'patconv_cfg' if cfg['type'] == 'PATConvNeXt' else 'conv_cfg'
    plain = build(scope, dict(cfg, type=cfg['type'].replace('PATConvNeXt', 'ConvNeXt')))
    network = build(scope, dict(cfg, **{option: dict(PATCONV) if option == 'conv_cfg' else {}}))
    network.init_weights()
    network.train()
    layers = [module for module in network.modules() if isinstance(module, PATConv2d)]
    assert len(layers) == replaced
    require_patconv(network, dict(PATCONV))
    # Sizes and names of all else are the original's.
    others = {key for key in network.state_dict() if not any(
        key.startswith(f'{layer}.') for layer, module in network.named_modules() if isinstance(module, PATConv2d))}
    assert others <= set(plain.state_dict())
    x = torch.randn(2, 3, 63, 65)
    outs, expected = network(x), plain(x)
    assert [out.shape for out in outs] == [out.shape for out in expected]
    random_loss(outs).backward()
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert set(parameters_without_gradient(network)) == frozen
    assert bool(frozen) == ('frozen_stages' in cfg)

    # The host's init_cfg reaches the layers; a drawn deviation lies within a tenth of it.
    layer = max(layers, key=lambda layer: layer.conv.weight.numel())
    std = 0.02 if option == 'patconv_cfg' else (2 / layer.conv.weight[:, 0].numel())**0.5
    assert layer.conv.weight.std().item() == pytest.approx(std, rel=0.1)
    assert (layer.norm.weight == 1).all() and (layer.norm.bias == 0).all()
    if cfg.get('norm_eval'):
        assert not any(module.training for module in network.modules() if isinstance(module, _BatchNorm))

    randomize_norms(network).eval()
    with torch.no_grad():
        expected = network(x)
        parts = merge_model(network)
        assert len(parts) == replaced
        assert relative_error(network(x), expected) < 1e-5
        # ConvNeXt has layer norms, and so none to merge.
        assert merge_following_norms(network) == (0 if option == 'patconv_cfg' else replaced)
        assert relative_error(network(x), expected) < 2e-5
        fuse_conv_bn(network)
        assert sum(isinstance(module, _BatchNorm) for module in network.modules()) == 0
        assert relative_error(network(x), expected) < 2e-5


def test_deformable_convolutions_refuse_it():
    with pytest.raises(AssertionError, match='conv_cfg must be None for DCN'):
        build('mmdet', dict(type='ResNet', depth=50, conv_cfg=PATCONV, dcn=dict(type='DCNv2', deform_groups=1),
                            stage_with_dcn=(False, True, True, True)))


def test_frozen_stages_of_convnext():
    network = build('mmpretrain', dict(type='PATConvNeXt', arch='atto', frozen_stages=1))
    layer = network.stages[0][0].depthwise_conv
    assert isinstance(layer, PATConv2d) and not layer.training
    assert not any(p.requires_grad for p in layer.parameters())
    assert all(p.requires_grad for p in network.stages[1][0].depthwise_conv.parameters())


class OtherConv2d(nn.Conv2d):
    """Stands for one that computes something else, such as timm's with standardized weights."""


def test_replace_convs_in_a_network_without_conv_cfg():
    timm = pytest.importorskip('timm')
    network = timm.create_model('convnext_atto').eval()
    x = torch.randn(1, 3, 64, 64)
    shape = network(x).shape
    names = replace_convs(network, conv='depthwise')
    assert names == [f'stages.{i}.blocks.{j}.conv_dw' for i, depth in enumerate((2, 2, 6, 2)) for j in range(depth)]
    assert network(x).shape == shape
    assert not any(module.training for module in network.modules())
    with pytest.raises(ValueError, match='Sequential has no convolution that PATConv could replace'):
        replace_convs(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)))
    network = nn.Sequential(nn.Conv2d(8, 8, 3, dtype=torch.float64), OtherConv2d(8, 8, 3))
    assert replace_convs(network) == ['0']
    assert network[0].conv.weight.dtype == torch.float64


class Model(nn.Module):
    """As a library builds it from ``cfg``."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = nn.Sequential(build_conv_layer(cfg['backbone']['conv_cfg'], 3, 16, 3),
                                      build_conv_layer(cfg['backbone']['conv_cfg'], 16, 16, 3))
        self.heads = nn.ModuleList(build_conv_layer(head.get('conv_cfg'), 16, head['width'], 3)
                                   for head in cfg.get('heads', ()))


def test_layers_that_all_stay_plain_are_an_error():
    backbone = dict(conv_cfg=dict(PATCONV))
    heads = [dict(width=16, conv_cfg=dict(type='mmengine.PATConv')), dict(width=8)]
    cfg = dict(backbone=backbone, heads=heads)
    require_patconv(Model(cfg), cfg)
    heads[1]['conv_cfg'] = dict(PATCONV, gate='se')
    with pytest.raises(ValueError, match=r"model\.heads\.1\.conv_cfg is of type 'PATConv' and has replaced no layer: "
                                         r'model\.heads\.1 \(Conv2d\)'):
        require_patconv(Model(cfg), cfg)
    # What cannot be found by the config's names is looked for in the whole model.
    require_patconv(Model(cfg), dict(student=dict(backbone=backbone)))
    plain = Model(dict(backbone=dict(conv_cfg=None)))
    for path in ('backbone', 'student'):
        with pytest.raises(ValueError, match=rf'model\.{path}\.conv_cfg is of type'):
            require_patconv(plain, {path: backbone})
    require_patconv(plain, dict(backbone=dict(conv_cfg=dict(type='Conv2d'))))


def test_the_hook_stops_before_training():
    hook = HOOKS.build(dict(type='PATConvCheckHook'))

    class Runner:
        cfg = Config(dict(model=dict(neck=dict(conv_cfg=PATCONV))))
        model = nn.Sequential(nn.Conv2d(3, 8, 3))

    with pytest.raises(ValueError, match=r'model\.neck\.conv_cfg'):
        hook.before_run(Runner)
    Runner.model = nn.Sequential(PATConv2d(8, 8, 3))
    hook.before_run(Runner)
    Runner.cfg = Config()
    hook.before_run(Runner)
