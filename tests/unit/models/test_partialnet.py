# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The backbone: its sizes, its values against the network written once more, and the backbone contract."""
import copy
import logging

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from partialnet_mm.analysis.flops import count_multiply_adds
from partialnet_mm.models import PartialNet, PartialNetBlock, PartialNetBlockV2, _layers
from tests.helpers import reference_network
from tests.helpers.networks import ALL, random_loss, relative_error

# Parameters in M and multiply-adds in G at 224 x 224, with a classifier of 1000 classes: parameters, multiply-adds of
# the trainable form (norms counted, two operations per element), and of the merged form. Counted with the official
# modules.
SIZES = {
    't0': (4.292, 0.263, 0.252), 't1': (7.794, 0.581, 0.556), 't2': (12.651, 1.087, 1.039),
    's': (28.976, 2.843, 2.716), 'm': (61.367, 7.022, 6.693), 'l': (104.466, 12.502, 11.909),
    't0-appendix': (3.558, None, 0.235), 't1-appendix': (6.145, None, 0.521),
}
# The paper's Table 1: multiply-adds in G.
PAPER = {'t0': 0.25, 't1': 0.55, 't2': 1.03, 's': 2.71, 'm': 6.69, 'l': 11.91}


def classifier(backbone):
    """The backbone with the paper's head."""
    return nn.Sequential(
        _LastMap(backbone), nn.AdaptiveAvgPool2d(1), nn.Conv2d(backbone.channels[-1], 1280, 1, bias=False),
        nn.Flatten(), nn.GELU(), nn.Linear(1280, 1000))


class _LastMap(nn.Module):

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)[-1]


@pytest.mark.parametrize('arch', list(SIZES))
def test_sizes(arch):
    params, trainable, merged = SIZES[arch]
    with torch.device('meta'):  # without values, all are counted at once
        backbone = PartialNet(arch)
        model = classifier(backbone)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, rel=1e-3)
    norm_elements = []
    hooks = [norm.register_forward_hook(lambda norm, args, out: norm_elements.append(out.numel()))
             for norm in model.modules() if isinstance(norm, (nn.BatchNorm2d, nn.LayerNorm))]
    counted = count_multiply_adds(model, (1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    if trainable is not None:
        assert (counted + 2 * sum(norm_elements)) / 1e9 == pytest.approx(trainable, rel=1e-3)
    backbone.switch_to_deploy()
    counted = count_multiply_adds(model, (1, 3, 224, 224)) / 1e9
    assert counted == pytest.approx(merged, rel=0.015)
    if arch in PAPER:
        assert counted == pytest.approx(PAPER[arch], rel=0.01)


@pytest.mark.parametrize('arch, width, depths, heads, act', [
    ('t0', 32, (1, 2, 6, 4), 4, nn.GELU), ('t1', 48, (1, 2, 6, 4), 6, nn.GELU), ('t2', 64, (2, 2, 6, 4), 6, nn.ReLU),
    ('s', 96, (2, 2, 9, 4), 6, nn.ReLU), ('t0-appendix', 32, (1, 2, 8, 2), 4, nn.GELU),
    ('T1-Appendix', 48, (1, 2, 8, 2), 6, nn.GELU),
])
def test_variants(arch, width, depths, heads, act):
    model = PartialNet(arch)
    assert model.channels == (width, 2 * width, 4 * width, 8 * width)
    assert tuple(len(stage) for stage in model.stages) == model.depths == depths
    for i, stage in enumerate(model.stages):
        for block in stage:
            assert type(block) is (PartialNetBlock if i < 3 else PartialNetBlockV2)
            assert block.token_mixer.conv.weight.shape == (model.channels[i] // 4, model.channels[i] // 4, 3, 3)
            assert isinstance(block.mlp.act, act)
    assert model.stages[3][0].token_mixer.num_heads == heads


@pytest.mark.parametrize('arch, detection', [('t0', False), ('t0', True), ('tiny', False), ('tiny', True)])
@pytest.mark.parametrize('size', [(64, 96), (33, 71)])
def test_equals_the_official_layout_written_once_more(arch, detection, size, tiny_arch):
    settings = tiny_arch if arch == 'tiny' else PartialNet.arch_settings[arch]
    state = reference_network.random_state(settings['embed_dim'], settings['depths'], settings['num_heads'], detection)
    act = settings['act_cfg']['type']
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = reference_network.forward(state, x, settings['depths'], act)
        backbone = PartialNet(settings, out_indices=ALL if detection else (3, )).eval()
        backbone.load_state_dict(reference_network.to_partialnet(state))
        if detection:
            outs = backbone(x)
        else:
            model = classifier(backbone).eval()
            model[2].weight.copy_(state['avgpool_pre_head.1.weight'])
            model[4] = nn.GELU() if act == 'GELU' else nn.ReLU()
            model[5].weight.copy_(state['head.weight'])
            model[5].bias.copy_(state['head.bias'])
            outs, expected = (*backbone(x), model(x)), expected[3:]
    assert len(outs) == len(expected)
    for out, want in zip(outs, expected):
        assert out.shape == want.shape
        assert (out - want).abs().max() < 1e-4 * want.abs().max()
        assert want.std() > 0.1  # a constant would prove nothing


@pytest.mark.parametrize('out_indices, stages', [
    (3, (3, )), (0, (0, )), (-1, (3, )), ((3, ), (3, )), ([0, 1, 2, 3], ALL), ((-4, -1), (0, 3)), ((2, 0), (0, 2)),
    (range(4), ALL),
])
def test_out_indices(out_indices, stages, tiny_arch):
    model = PartialNet(tiny_arch, out_indices=out_indices).eval()
    full = PartialNet(tiny_arch, out_indices=ALL, out_norm=False).eval()
    full.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 96)
    outs, maps = model(x), full(x)
    assert isinstance(outs, tuple)
    assert model.out_indices == stages
    assert [out.shape for out in outs] == [maps[i].shape for i in stages]
    for out, i in zip(outs, stages):
        torch.testing.assert_close(out, getattr(model, f'norm{i}')(maps[i]))


@pytest.mark.parametrize('out_indices, out_norm, normed', [
    ((3, ), None, False), ((3, ), True, True), ((0, 1, 2, 3), None, True), ((1, 2), None, True), ((1, 2), False, False),
    (0, None, False),
])
def test_out_norms(out_indices, out_norm, normed, tiny_arch):
    model = PartialNet(tiny_arch, out_indices=out_indices, out_norm=out_norm)
    for i in range(4):
        if i in model.out_indices:
            assert type(getattr(model, f'norm{i}')) is (nn.BatchNorm2d if normed else nn.Identity)
        else:
            assert not hasattr(model, f'norm{i}')


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (112, 137), (65, 200), (32, 1000)])
def test_any_size(size, tiny_arch):
    model = PartialNet(tiny_arch, out_indices=ALL).eval()
    outs = model(torch.randn(1, 3, *size))
    for out, channels, stride in zip(outs, model.channels, (4, 8, 16, 32)):
        assert out.shape == (1, channels, size[0] // stride, size[1] // stride)
        assert torch.isfinite(out).all()


def test_sizes_after_one_another_leave_nothing_behind(tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, out_indices=ALL)).eval()
    inputs = [torch.randn(1, 3, *size) for size in ((64, 96), (137, 112), (64, 96), (32, 32))]
    for x in inputs:
        used = model(x)
        for out, fresh in zip(used, copy.deepcopy(model)(x)):
            assert torch.equal(out, fresh)
    for out, again in zip(used, model(inputs[-1])):
        assert torch.equal(out, again)
    assert {name for name, _ in model.named_buffers()} == {
        name for name, _ in PartialNet(tiny_arch, out_indices=ALL).named_buffers()}


@pytest.mark.parametrize('shape', [(1, 3, 31, 64), (1, 3, 64, 31), (3, 64, 64), (1, 1, 64, 64), (1, 3, 8, 64, 64)])
def test_refuses_other_inputs(shape, tiny_arch):
    with pytest.raises(ValueError) as error:
        PartialNet(tiny_arch)(torch.zeros(shape))
    assert str(error.value) == (f'PartialNet needs images of shape (B, 3, H, W) with H and W of at least 32, '
                                f'got {shape}')


@pytest.mark.parametrize('in_channels', [1, 4])
def test_in_channels(in_channels, tiny_arch):
    model = PartialNet(tiny_arch, in_channels=in_channels)
    assert model.downsample_layers[0].conv.weight.shape == (16, in_channels, 4, 4)
    assert model(torch.randn(2, in_channels, 64, 64))[0].shape == (2, 128, 2, 2)
    with pytest.raises(ValueError, match=rf'\(B, {in_channels}, H, W\).*got \(1, 3, 64, 64\)'):
        model(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize('options', [
    dict(), dict(out_indices=ALL), dict(out_indices=ALL, layer_scale_init_value=1e-2),
    dict(out_indices=ALL, norm_cfg=dict(type='GN', num_groups=2)), dict(split_ratio=1), dict(norm_eval=True),
    dict(token_mixers=('full_ch', 'full_ch', 'full_ch', 'full_sf')), dict(spatial_attention='full'), dict(gate='srm'),
    dict(gate='se'), dict(gate='eca'), dict(gate='cbam'), dict(gate='srm', token_mixers='full_ch'),
    dict(token_mixers='partial_conv', spatial_attention='none'), dict(token_mixers='pat_ch', spatial_attention='none'),
    dict(token_mixers=('conv', 'conv', 'conv', 'pat_sf')), dict(token_mixers='depthwise_conv'),
], ids=str)
def test_every_parameter_learns(options, tiny_arch):
    model = PartialNet(tiny_arch, **options).train()
    model.init_weights()
    random_loss(model(torch.randn(4, 3, 96, 96))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def norms_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


FROZEN = {
    -1: (),
    0: ('downsample_layers.0.', ),
    1: ('downsample_layers.0.', 'stages.0.', 'norm0.'),
    2: ('downsample_layers.0.', 'stages.0.', 'norm0.', 'downsample_layers.1.', 'stages.1.', 'norm1.'),
    3: ('downsample_layers.0.', 'stages.0.', 'norm0.', 'downsample_layers.1.', 'stages.1.', 'norm1.',
        'downsample_layers.2.', 'stages.2.', 'norm2.'),
    4: ('downsample_layers.', 'stages.', 'norm'),
}


@pytest.mark.parametrize('frozen_stages', list(FROZEN))
def test_frozen_stages(frozen_stages, tiny_arch):
    model = PartialNet(tiny_arch, out_indices=ALL, frozen_stages=frozen_stages)
    model.init_weights()
    model.eval()
    model.train()
    before = copy.deepcopy(norms_of(model))
    outs = model(torch.randn(4, 3, 64, 64))
    if frozen_stages == 4:
        assert not any(out.requires_grad for out in outs)
    else:
        random_loss(outs).backward()
    prefixes = FROZEN[frozen_stages]
    for name, parameter in model.named_parameters():
        frozen = name.startswith(prefixes)
        assert parameter.requires_grad == (not frozen), name
        assert (parameter.grad is None) == frozen, name
    for name, norm in norms_of(model).items():
        frozen = f'{name}.'.startswith(prefixes)
        assert norm.training == (not frozen), name
        for kind, statistic in norm.named_buffers():
            assert torch.equal(statistic, before[name].get_buffer(kind)) == frozen, (name, kind)


def test_frozen_stages_without_out_norms(tiny_arch):
    model = PartialNet(tiny_arch, out_indices=(3, ), frozen_stages=3).train()
    assert {name.split('.')[1] for name, p in model.named_parameters() if p.requires_grad} == {'3'}


def test_norm_eval_keeps_the_statistics_of_layers_and_trains_those_of_returned_feature_maps(tiny_arch):
    model = PartialNet(tiny_arch, out_indices=ALL, norm_eval=True)
    assert model.train() is model
    training = {name for name, norm in norms_of(model).items() if norm.training}
    assert training == {'norm0', 'norm1', 'norm2', 'norm3'} < set(norms_of(model))
    assert all(p.requires_grad for p in model.parameters())
    assert model.training
    assert model.stages[0][0].drop_path.training
    before = {name: value.clone() for name, value in model.named_buffers()}
    outs = model(torch.randn(2, 3, 64, 64))
    changed = {name.rpartition('.')[0] for name, value in model.named_buffers()
               if not torch.equal(value, before[name])}
    assert changed == training
    for i, out in enumerate(outs):
        mean, var = out.mean((0, 2, 3)), out.var((0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
        assert (var > 0.5).all(), f'norm{i} divides by the deviation of this batch'
    assert not any(norm.training for norm in norms_of(model.eval()).values())
    assert PartialNet(tiny_arch).train().stages[0][0].mlp.norm.training


@pytest.mark.parametrize('frozen_stages, training', [(0, '0123'), (2, '23'), (4, '')])
def test_frozen_stages_include_the_norms_of_their_feature_maps(frozen_stages, training, tiny_arch):
    model = PartialNet(tiny_arch, out_indices=ALL, norm_eval=True, frozen_stages=frozen_stages).train()
    assert {name for name, norm in norms_of(model).items() if norm.training} == {f'norm{i}' for i in training}


@pytest.mark.parametrize('size, batch', [(32, 1), (64, 1), (32, 2)])
def test_norm_eval_trains_on_feature_maps_of_few_values(size, batch, tiny_arch):
    """Of one value, a norm uses its running statistics."""
    model = PartialNet(tiny_arch, out_indices=ALL, norm_eval=True).train()
    random_loss(model(torch.randn(batch, 3, size, size))).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.norm3.num_batches_tracked == (size > 32 or batch > 1)


def test_the_norms_of_returned_feature_maps_remain_after_merging_and_train(tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, out_indices=ALL, norm_eval=True)).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    model.switch_to_deploy()
    assert relative_error(model(x), expected) < 1e-5
    assert {name for name, norm in norms_of(model.train()).items() if norm.training} == {f'norm{i}' for i in ALL}


def warnings_of_steps(model, monkeypatch, steps=2):
    """What the logger gets as warnings in some steps of a training."""
    logged = []
    monkeypatch.setattr(_layers, 'print_log', lambda text, logger, level: logged.append((text, logger, level)))
    for _ in range(steps):
        model.train()(torch.randn(2, 3, 64, 64))
    return logged


def test_norm_eval_without_statistics_warns_at_the_first_training_step(tiny_arch, monkeypatch):
    model = PartialNet(tiny_arch, out_indices=ALL, norm_eval=True)
    model.init_weights()
    assert warnings_of_steps(copy.deepcopy(model).eval(), monkeypatch, steps=0) == []
    (text, logger, level), = warnings_of_steps(model, monkeypatch)
    assert (logger, level) == ('current', logging.WARNING)
    for fragment in ('WITHOUT NORMALIZATION', 'init_cfg', 'load_from', 'norm_eval=False',
                     'configs/mask_rcnn/partialnet_t0_scratch.py'):
        assert fragment in text


def load_all(model, other):
    model.load_state_dict(other.state_dict())


def load_one_statistic(model, other):
    """As from a file that lacks num_batches_tracked, into one norm."""
    model.stages[2][1].mlp.norm.running_mean.copy_(other.stages[2][1].mlp.norm.running_mean)


@pytest.mark.parametrize('options, load', [
    (dict(norm_eval=True), load_all), (dict(norm_eval=True), load_one_statistic), (dict(), None),
    (dict(norm_eval=True, norm_cfg=dict(type='GN', num_groups=2)), None), (dict(norm_eval=True, deploy=True), None),
], ids=['loaded', 'loaded in part', 'batch statistics', 'other norms', 'merged'])
def test_no_warning_where_statistics_were_loaded_or_are_not_needed(options, load, tiny_arch, monkeypatch,
                                                                   randomize_norms):
    model = PartialNet(tiny_arch, out_indices=ALL, **options)
    if load:
        load(model, randomize_norms(PartialNet(tiny_arch, out_indices=ALL)))
    assert warnings_of_steps(model, monkeypatch) == []


def test_statistics_are_checked_where_tensors_have_values(tiny_arch, monkeypatch):
    """A step on torch's meta device has none to check, and the first real one after it is checked."""
    model = PartialNet(tiny_arch, norm_eval=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model.train()(torch.empty(2, 3, 64, 64))[0].shape == (2, 128, 2, 2)
    copy.deepcopy(model).to('meta').train()(torch.empty(2, 3, 64, 64, device='meta'))
    assert len(warnings_of_steps(model, monkeypatch)) == 1


def test_split_ratio_of_each_block(tiny_arch):
    ratios = [1 / 16, 0.5, 1, 0.25, 0.125]
    model = PartialNet(tiny_arch, split_ratio=ratios).eval()
    blocks = [block for stage in model.stages for block in stage]
    widths = [16, 32, 64, 64, 128]
    assert [b.token_mixer.conv.weight.shape[0] for b in blocks] == [int(w * r) for w, r in zip(widths, ratios)]
    assert blocks[2].token_mixer.gate is None
    assert model(torch.randn(1, 3, 64, 64))[0].shape == (1, 128, 2, 2)
    same = PartialNet(tiny_arch, split_ratio=tuple([0.25] * 5))
    assert same.load_state_dict(PartialNet(tiny_arch).state_dict())


def test_drop_path_grows_linearly():
    model = PartialNet('t0', drop_path_rate=0.24)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.02 * i for i in range(13)])
    assert {block.drop_path.drop_prob for stage in PartialNet('t0').stages for block in stage} == {0}


def test_dropout_rates_reach_the_attention(tiny_arch):
    model = PartialNet(tiny_arch, attn_drop_rate=0.1, proj_drop_rate=0.2)
    mixer = model.stages[3][0].token_mixer
    assert (mixer.attn_drop_rate, mixer.proj_drop.p) == (0.1, 0.2)


def test_options_of_the_layers():
    arch = dict(embed_dim=24, depths=[1, 1, 1, 2], num_heads=3, act_cfg=dict(type='GELU'))
    model = PartialNet(arch, norm_cfg=dict(type='BN', eps=1e-3), act_cfg=dict(type='SiLU'), layer_scale_init_value=0.1,
                       out_indices=ALL)
    assert model.channels == (24, 48, 96, 192)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert {norm.eps for norm in norms} == {1e-3}
    # Stem and merging 4, blocks of stages 1-3 five each, of stage 4 three each, returned feature maps 4.
    assert len(norms) == 4 + 3 * 5 + 2 * 3 + 4
    for stage in model.stages:
        for block in stage:
            assert isinstance(block.mlp.act, nn.SiLU)
            assert torch.equal(block.layer_scale, torch.full_like(block.layer_scale, 0.1))
    default = PartialNet(dict(arch, act_cfg=dict(type='ReLU')))
    assert isinstance(default.stages[0][0].mlp.act, nn.ReLU)
    assert {m.eps for m in default.modules() if isinstance(m, _BatchNorm)} == {1e-5}
    assert default.stages[3][0].token_mixer.norm.eps == 1e-6


def test_initialization(tiny_arch):
    model = PartialNet(dict(tiny_arch, embed_dim=64), out_indices=ALL, layer_scale_init_value=1e-2)
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert module.weight.abs().max() <= 2.001, name
            if module.weight.numel() > 2000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
                assert abs(module.weight.mean().item()) < 2e-3, name
            assert module.bias is None or module.bias.abs().sum() == 0, name
        elif isinstance(module, (_BatchNorm, nn.LayerNorm)):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
    assert all((block.layer_scale == 1e-2).all() for stage in model.stages for block in stage)
    assert all((block.token_mixer.position_bias.table == 0).all() for block in model.stages[3])


def test_own_initialization(tiny_arch):
    model = PartialNet(tiny_arch, init_cfg=dict(type='Constant', layer='Conv2d', val=0.5))
    model.init_weights()
    assert (model.downsample_layers[0].conv.weight == 0.5).all()


@pytest.mark.parametrize('form', ['trainable', 'merged'])
@pytest.mark.parametrize('out_indices', [(3, ), ALL])
def test_bfloat16_autocast(form, out_indices):
    model = PartialNet('t0', out_indices=out_indices).eval()
    model.init_weights()
    if form == 'merged':
        model.switch_to_deploy()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            outs = model(x)
    for out, want in zip(outs, expected):
        assert torch.isfinite(out).all()
        assert (out.float() - want).norm() < 0.02 * want.norm()


def test_bfloat16_autocast_trains():
    model = PartialNet('t0', out_indices=ALL).train()
    model.init_weights()
    with torch.autocast('cpu', torch.bfloat16):
        outs = model(torch.randn(2, 3, 64, 64))
    random_loss(outs).backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


BAD_ARGUMENTS = [
    (dict(arch='xl'), ("arch 'xl'", "'l', 'm', 's', 't0', 't0-appendix', 't1', 't1-appendix', 't2'")),
    (dict(arch=None), ('arch must be', 'embed_dim', 'got None')),
    (dict(arch=dict(embed_dim=32)), ('arch must be', "'depths'", "got {'embed_dim': 32}")),
    (dict(arch=dict(depths=(1, 1, 1))), ("arch['depths']", '4 positive ints', 'got (1, 1, 1)')),
    (dict(arch=dict(depths=(1, 0, 1, 1))), ("arch['depths']", 'got (1, 0, 1, 1)')),
    (dict(arch=dict(depths=(1, 1, 1, 1.5))), ("arch['depths']", 'got (1, 1, 1, 1.5)')),
    (dict(arch=dict(depths=4)), ("arch['depths']", 'got 4')),
    (dict(arch=dict(embed_dim=33)), ("arch['embed_dim']", 'even', 'got 33')),
    (dict(arch=dict(embed_dim='32')), ("arch['embed_dim']", "got '32'")),
    (dict(arch=dict(num_heads=0)), ("arch['num_heads']", 'positive', 'got 0')),
    (dict(in_channels=0), ('in_channels', 'positive', 'got 0')),
    (dict(in_channels='3'), ('in_channels', "got '3'")),
    (dict(split_ratio=0), ('split_ratio', '(0, 1]', 'got 0')),
    (dict(split_ratio=1.5), ('split_ratio', '(0, 1]', 'got 1.5')),
    (dict(split_ratio=None), ('split_ratio', 'one for each of the 5 blocks', 'got None')),
    (dict(split_ratio='0.25'), ('split_ratio', 'one for each of the 5 blocks', "got '0.25'")),
    (dict(split_ratio=[0.25] * 4), ('split_ratio', 'one for each of the 5 blocks', '[0.25, 0.25, 0.25, 0.25]')),
    (dict(split_ratio=[0.25] * 4 + [-1]), ('split_ratio', '(0, 1]', 'got -1')),
    (dict(split_ratio=[0.25] * 4 + ['a']), ('split_ratio', '(0, 1]', "got 'a'")),
    (dict(split_ratio=0.01), ('split_ratio=0.01', 'at least 1/16')),
    (dict(out_indices=4), ('out_indices', 'from -4 to 3', 'got 4')),
    (dict(out_indices=-5), ('out_indices', 'from -4 to 3', 'got -5')),
    (dict(out_indices=()), ('out_indices', 'got ()')),
    (dict(out_indices=(3, -1)), ('out_indices', 'different', 'got (3, -1)')),
    (dict(out_indices=None), ('out_indices', 'got None')),
    (dict(out_indices=('a', )), ('out_indices', "got ('a',)")),
    (dict(out_indices=(1., )), ('out_indices', 'got (1.0,)')),
    (dict(frozen_stages=5), ('frozen_stages', 'from -1 (none) to 4', 'got 5')),
    (dict(frozen_stages=-2), ('frozen_stages', 'from -1 (none) to 4', 'got -2')),
    (dict(frozen_stages=1.), ('frozen_stages', 'got 1.0')),
    (dict(drop_path_rate=1), ('drop_path_rate', '[0, 1)', 'got 1')),
    (dict(drop_path_rate=None), ('drop_path_rate', '[0, 1)', 'got None')),
    (dict(attn_drop_rate=-0.1), ('attn_drop_rate', '[0, 1)', 'got -0.1')),
    (dict(proj_drop_rate='0'), ('proj_drop_rate', '[0, 1)', "got '0'")),
    (dict(layer_scale_init_value=-1), ('layer_scale_init_value', '0 (none) or positive', 'got -1')),
    (dict(layer_scale_init_value=None), ('layer_scale_init_value', 'got None')),
    (dict(init_cfg=dict(type='Pretrained')), ("init_cfg of type 'Pretrained'", 'checkpoint', "got {'type'")),
]


@pytest.mark.parametrize('arguments, fragments', BAD_ARGUMENTS, ids=lambda value: str(value)[:60])
def test_refuses_bad_arguments(arguments, fragments, tiny_arch):
    arch = arguments.get('arch', tiny_arch)
    if isinstance(arch, dict) and arch != dict(embed_dim=32):
        arch = {**tiny_arch, **arch}
    with pytest.raises(ValueError) as error:
        PartialNet(**{**arguments, 'arch': arch})
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize('arguments, nearest', [
    (dict(drop_path=0.1), 'drop_path_rate'), (dict(out_indice=3), 'out_indices'), (dict(pretrained='a.pth'), None)
])
def test_refuses_unknown_arguments(arguments, nearest):
    (name, value), = arguments.items()
    with pytest.raises(TypeError) as error:
        PartialNet('t0', **arguments)
    message = str(error.value)
    assert f'PartialNet has no argument {name!r} (given {name}={value!r})' in message
    assert ('did you mean' in message) == (nearest is not None)
    assert nearest is None or f'did you mean {nearest!r}?' in message
    assert 'Allowed are arch, in_channels, split_ratio, out_indices' in message


def test_builds_from_the_root_registry():
    model = MODELS.build(dict(type='PartialNet', arch='t0', out_indices=ALL, drop_path_rate=0.1))
    assert type(model) is PartialNet


@pytest.mark.parametrize('library', ['mmdet', 'mmpretrain', 'mmseg'])
def test_builds_bare_in_every_library(library):
    pytest.importorskip(library)
    registry = pytest.importorskip(f'{library}.registry').MODELS
    assert type(registry.build(dict(type='PartialNet', arch='t0'))) is PartialNet


def test_arguments_are_left_as_given(tiny_arch):
    arguments = dict(arch=tiny_arch, out_indices=[3, 0], split_ratio=[0.25] * 5, norm_cfg=dict(type='BN'),
                     init_cfg=dict(type='Constant', layer='Conv2d', val=1.))
    kept = copy.deepcopy(arguments)
    settings = copy.deepcopy(PartialNet.arch_settings)
    PartialNet(**arguments)
    PartialNet('t2').switch_to_deploy()
    assert arguments == kept
    assert settings == PartialNet.arch_settings
