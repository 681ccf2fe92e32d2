# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Training in the folded form: the network, its weights and its gradients are those of the plain form."""
import copy

import numpy as np
import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from PIL import Image
from torch import nn
from torch.autograd import gradcheck
from torch.nn.modules.batchnorm import _BatchNorm

from partialnet_mm.analysis.measure import kept_memory
from partialnet_mm.models import MergedBlock, PartialNet
from partialnet_mm.models._folded_training import GatedInputConv, GatedOutputConv, PatchConv
from partialnet_mm.models.merged_block import fold_mlp
from tests.helpers.coco_data import REAL
from tests.helpers.networks import ALL, relative_error


@pytest.fixture
def pair(tiny_arch, randomize_norms):
    """Builds the same network in the plain and in the folded form, in training mode.

    Without norms of the returned feature maps, which are not folded: they train with the statistics of the batch, so
    that shifts before them have no gradient but that of rounding.
    """

    def build(arch=tiny_arch, dtype=torch.float32, **options):
        options = dict(dict(out_indices=ALL, out_norm=False, norm_eval=True), **options)
        plain = randomize_norms(PartialNet(arch, **options)).to(dtype).train()
        folded = PartialNet(arch, train_folded=True, **options).to(dtype).train()
        folded.load_state_dict(plain.state_dict(), strict=True)
        return plain, folded

    return build


def train_step(model, x):
    """Outputs and gradients of the parameters and the image, with random numbers of a fixed seed."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    outs = model(x)
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    return outs, {'image': x.grad} | {name: p.grad for name, p in model.named_parameters()}


def check_same_step(plain, folded, x, bound):
    outs, gradients = train_step(plain, x)
    folded_outs, folded_gradients = train_step(folded, x)
    assert relative_error(folded_outs, outs) < bound
    assert folded_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        if gradient is None or not gradient.any():  # frozen, or the branch was dropped in every image
            assert folded_gradients[name] is None or not folded_gradients[name].any(), name
        else:
            assert relative_error(folded_gradients[name], gradient) < bound, name


@pytest.mark.parametrize('options', [
    dict(), dict(layer_scale_init_value=0.5), dict(split_ratio=1), dict(split_ratio=[0.5, 1 / 16, 1, 0.25, 1]),
    dict(act_cfg=dict(type='GELU')), dict(act_cfg=dict(type='PReLU')), dict(in_channels=1, out_indices=(3, )),
    dict(with_cp=True, drop_path_rate=0.5, attn_drop_rate=0.3, proj_drop_rate=0.3), dict(frozen_stages=2),
    dict(frozen_stages=3, with_cp=True), dict(norm_cfg=dict(type='BN', affine=False)), dict(gate='se'),
    dict(norm_cfg=dict(type='SyncBN', eps=1e-3)), dict(token_mixers='full_ch', gate='srm'), dict(gate='eca'),
    dict(token_mixers='pat_ch', gate='cbam'), dict(token_mixers='dpconv'), dict(token_mixers='dpconv_ch'),
    dict(token_mixers=('conv', 'depthwise_conv', 'partial_conv', 'full_sf')), dict(spatial_attention='full'),
    dict(spatial_attention='full', layer_scale_init_value=0.5), dict(spatial_attention='none'),
    dict(token_mixers='partial_conv', spatial_attention='none', layer_scale_init_value=0.5),
    dict(out_norm=True, spatial_attention='none')], ids=str)
def test_same_outputs_and_gradients(options, pair):
    plain, folded = pair(dtype=torch.float64, **options)
    # Rows and columns that fill no whole patch get no gradient.
    x = torch.randn(2, options.get('in_channels', 3), 35, 66, dtype=torch.float64)
    check_same_step(plain, folded, x, 1e-12)


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_same_in_single_precision(batch, memory_format, pair):
    plain, folded = (model.to(memory_format=memory_format) for model in pair())
    x = torch.randn(batch, 3, 96, 64).to(memory_format=memory_format)
    check_same_step(plain, folded, x, 1e-4)
    assert all(out.is_contiguous(memory_format=memory_format) for out in folded(x))


@pytest.mark.slow
@pytest.mark.parametrize('arch', PartialNet.arch_settings)
def test_all_parameters_of_every_arch(arch, pair):
    check_same_step(*pair(arch, torch.float64), torch.randn(2, 3, 96, 128, dtype=torch.float64), 1e-12)


def test_same_under_autocast(pair):
    plain, folded = pair()
    x = torch.randn(2, 3, 64, 96)
    exact = plain(x)
    with torch.autocast('cpu', torch.bfloat16):
        outs, folded_outs = plain(x), folded(x)
    assert [out.dtype for out in folded_outs] == [out.dtype for out in outs]
    assert relative_error(folded_outs, exact) < 2 * relative_error(outs, exact)
    with torch.autocast('cpu', torch.bfloat16):
        sum(out.float().square().mean() for out in folded(x)).backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in folded.parameters())


def test_same_in_half_precision(pair):
    plain, folded = pair(dtype=torch.bfloat16)
    x = torch.randn(2, 3, 64, 96, dtype=torch.bfloat16)
    exact = copy.deepcopy(plain).double()(x.double())
    assert relative_error(folded(x), exact) < 2 * relative_error(plain(x), exact)


@pytest.mark.parametrize('options', [dict(), dict(layer_scale_init_value=0.5), dict(spatial_attention='full')], ids=str)
def test_merging_stores_what_a_step_folds(options, pair):
    for block in (block for stage in pair(dtype=torch.float64, **options)[1].stages for block in stage):
        mixer = block.token_mixer
        affine = mixer.output_affine(training=True) if hasattr(mixer, 'output_affine') else None
        folded, merged = fold_mlp(block, affine, training=True), MergedBlock(block)
        second = (merged.mlp.conv2, merged.spatial_attention.logit_conv)
        stored = (merged.mlp.conv1.weight, merged.mlp.conv1.bias, torch.cat([conv.weight for conv in second]),
                  torch.cat([conv.bias for conv in second]), merged.spatial_attention.shift.flatten())
        assert all(map(torch.equal, folded, stored))


def test_evaluation_and_state_dict_are_those_of_the_plain_form(pair):
    plain, folded = pair()
    x = torch.randn(2, 3, 64, 64)
    assert all(map(torch.equal, folded.eval()(x), plain.eval()(x)))
    assert all(map(torch.equal, copy.deepcopy(folded).train().eval()(x), plain(x)))
    assert folded.state_dict().keys() == plain.state_dict().keys()
    folded.switch_to_deploy()
    assert relative_error(folded(x), plain(x)) < 1e-5
    assert relative_error(folded.train()(x), plain(x)) < 1e-5


def test_an_averaged_copy(pair):
    """As EMAHook keeps it: it computes in both modes with the averaged weights."""
    plain, folded = pair(dtype=torch.float64)
    average = ExponentialMovingAverage(folded, momentum=0.25)
    average.update_parameters(folded)
    before = copy.deepcopy(folded.state_dict())
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.mul_(1.5)
    average.update_parameters(folded)
    torch.testing.assert_close(average.module.state_dict()['stages.2.0.mlp.conv1.weight'],
                               before['stages.2.0.mlp.conv1.weight'] * 1.125)
    plain.load_state_dict(average.module.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for mode in (True, False):
        assert relative_error(average.module.train(mode)(x), plain.train(mode)(x)) < 1e-12


# Memory.

def test_keeps_less(pair):
    plain, folded = pair(dict(embed_dim=32, depths=(1, 1, 2, 1), num_heads=2, act_cfg=dict(type='ReLU', inplace=True)))
    x = torch.randn(1, 3, 320, 320)
    assert kept_memory(folded, x) < 0.7 * kept_memory(plain, x)


@pytest.mark.parametrize('frozen_stages', [2, 4])
def test_frozen_stages_keep_nothing(frozen_stages, tiny_arch):
    model = PartialNet(tiny_arch, norm_eval=True, train_folded=True, frozen_stages=frozen_stages).train()
    x = torch.randn(1, 3, 64, 64)
    for downsample, stage in zip(model.downsample_layers[:frozen_stages], model.stages):
        assert downsample.train_folded and stage[0].train_folded
        x = stage(downsample(x))
        assert x.grad_fn is None


# What sits on a layer is honoured or refused.

FOLDED = tuple(f'stages.2.1.{name}' for name in (
    'mlp', 'mlp.conv1', 'mlp.norm', 'mlp.conv2', 'token_mixer', 'token_mixer.norm', 'spatial_attention',
    'spatial_attention.logit_conv', 'spatial_attention.attended_norm', 'spatial_attention.rest_norm',
    'spatial_attention.rest_conv')) + ('downsample_layers.0.conv', 'downsample_layers.0.norm')
CALLED = ('downsample_layers.0', 'stages.2', 'stages.2.1', 'stages.2.1.token_mixer.conv', 'stages.2.1.token_mixer.gate',
          'stages.2.1.token_mixer.gate.conv', 'stages.2.1.token_mixer.gate.norm', 'stages.2.1.mlp.act',
          'stages.2.1.drop_path', 'stages.3.0.token_mixer', 'stages.3.0.token_mixer.norm',
          'stages.3.0.token_mixer.qkv', 'norm3')


@pytest.mark.parametrize('name', FOLDED)
def test_hooks_and_wrappers_of_folded_layers_are_refused(name, pair):
    _, folded = pair()
    x = torch.randn(1, 3, 32, 32)
    handle = folded.get_submodule(name).register_forward_hook(lambda *args: None)
    with pytest.raises(TypeError, match='has hooks, which its folded form would leave out'):
        folded(x)
    handle.remove()
    owner, _, child = name.rpartition('.')
    if child not in ('mlp', 'token_mixer', 'spatial_attention'):
        children = folded.get_submodule(owner)._modules
        children[child] = nn.Sequential(children[child])
        with pytest.raises(TypeError, match='is a Sequential'):
            folded(x)


def test_hooks_of_all_other_layers_are_called(pair):
    _, folded = pair(dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=2, act_cfg=dict(type='ReLU')), out_norm=True)
    kinds = ('register_forward_hook', 'register_forward_pre_hook', 'register_full_backward_hook',
             'register_full_backward_pre_hook')
    calls = set()
    for name in CALLED:
        for kind in kinds:
            getattr(folded.get_submodule(name), kind)(lambda *args, call=(name, kind): calls.add(call))
    sum(out.sum() for out in folded(torch.randn(2, 3, 32, 32, requires_grad=True))).backward()
    assert calls == {(name, kind) for name in CALLED for kind in kinds}


def test_convolutions_that_compute_otherwise_are_refused(pair):
    class Quantized(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).round()

    _, folded = pair()
    folded.downsample_layers[1].conv.__class__ = Quantized
    with pytest.raises(TypeError, match='the convolution of Downsample is a Quantized'):
        folded(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize('name', ['mlp.conv1', 'mlp.conv2', 'spatial_attention.rest_conv', 'mlp.norm'])
def test_parametrizations_act(name, pair):
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    models = pair(dtype=torch.float64)
    for model in models:
        nn.utils.parametrize.register_parametrization(model.get_submodule(f'stages.2.0.{name}'), 'weight', Half())
    check_same_step(*models, torch.randn(1, 3, 64, 64, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize('options, error, text', [
    (dict(norm_eval=False), ValueError, 'train_folded=True needs norm_eval=True, got norm_eval=False'),
    (dict(norm_eval=True, norm_cfg=dict(type='GN', num_groups=2)), ValueError,
     'train_folded=True needs batch norms, got norm_cfg=.*GN'),
    (dict(norm_eval=True, with_cp='norm_act'), ValueError,
     "train_folded=True needs with_cp of True or False, got 'norm_act'")])
def test_refused_arguments(options, error, text, tiny_arch):
    with pytest.raises(error, match=text):
        PartialNet(tiny_arch, train_folded=True, **options)


@pytest.mark.parametrize('options, folds', [
    (dict(norm_eval=True), True), (dict(norm_eval=True, with_cp=True), True), (dict(norm_eval=False), False),
    (dict(norm_eval=True, with_cp='norm_act'), False),
    (dict(norm_eval=True, norm_cfg=dict(type='GN', num_groups=2)), False)],
    ids=str)
def test_auto_folds_where_that_is_possible(options, folds, tiny_arch):
    """A config that inherits it may set norm_eval=False, other norms or with_cp='norm_act'."""
    model = PartialNet(tiny_arch, train_folded='auto', **options).train()
    assert model.train_folded is folds and model.stages[0][0].train_folded is folds
    assert model(torch.randn(2, 3, 64, 64))[0].isfinite().all()


def test_norms_in_training_mode_are_refused(pair):
    _, folded = pair()
    norms = [norm for name, norm in folded.named_modules() if isinstance(norm, _BatchNorm) and '.gate.' not in name]
    for norm in norms:
        norm.train()
        with pytest.raises(ValueError, match='is in training mode.*needs the batch norms as norm_eval=True'):
            folded(torch.randn(1, 3, 64, 64))
        norm.eval()


# The functions with a backward pass of their own.

def maps(*shape, channels_last=True):
    x = torch.randn(*shape, dtype=torch.float64)
    return (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()


def weights(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize('batch', [1, 2])
def test_gradients_of_gated_input_conv(batch):
    x = maps(batch, 5, 3, 2)
    gate, weight, bias = weights(batch, 3, 1, 1), weights(4, 5, 1, 1), weights(4)

    def function(x, gate, weight, bias):
        first, second = x.split((2, 3), dim=1)
        return GatedInputConv.apply(first.contiguous(memory_format=torch.channels_last), second, gate, weight, bias)

    expected = nn.functional.conv2d(torch.cat((x[:, :2], x[:, 2:] * gate), dim=1), weight, bias)
    torch.testing.assert_close(function(x, gate, weight, bias), expected)
    assert gradcheck(function, (x, gate, weight, bias))
    torch.testing.assert_close(GatedInputConv.apply(x, None, None, weight, bias),
                               nn.functional.conv2d(x, weight, bias))
    assert gradcheck(GatedInputConv.apply, (x, None, None, weight, bias))


@pytest.mark.parametrize('gated', [2, 3, 5])
def test_gradients_of_gated_output_conv(gated):
    x, weight, bias, shift = maps(2, 4, 3, 2), weights(6, 4, 1, 1), weights(6), weights(gated)
    out = nn.functional.conv2d(x, weight, bias)
    expected = torch.cat((out[:, :gated] * nn.functional.hardsigmoid(out[:, -1:]) + shift.view(-1, 1, 1),
                          out[:, gated:-1]), dim=1)
    torch.testing.assert_close(GatedOutputConv.apply(x, weight, bias, shift), expected)
    assert gradcheck(GatedOutputConv.apply, (x, weight, bias, shift))


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('stride, size', [(2, (4, 7)), (4, (9, 4))])
def test_gradients_of_patch_conv(stride, size, channels_last):
    x, weight, bias = maps(2, 3, *size, channels_last=channels_last), weights(4, 3, stride, stride), weights(4)
    torch.testing.assert_close(PatchConv.apply(x, weight, bias), nn.functional.conv2d(x, weight, bias, stride))
    assert gradcheck(PatchConv.apply, (x, weight, bias))


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f'{REAL} is missing')
def test_losses_on_photographs(tiny_arch):
    """50 steps of SGD on photographs give the same losses, to the rounding of float32."""
    paths = sorted((REAL / 'images').glob('*.jpg'))[:10]
    arrays = [np.array(Image.open(path).convert('RGB').resize((160, 128))) for path in paths]
    images = (torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() - 118) / 57
    losses = []
    for train_folded in (False, True):
        torch.manual_seed(0)
        model = PartialNet(tiny_arch, out_indices=(3, ), norm_eval=True, train_folded=train_folded)
        model.init_weights()
        head = nn.Linear(128, len(images))
        model.train()
        optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.05, momentum=0.9)
        losses.append([])
        for step in range(50):
            batch = [(2 * step + i) % len(images) for i in range(2)]
            loss = nn.functional.cross_entropy(head(model(images[batch])[0].mean((2, 3))), torch.tensor(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.detach())
    plain, folded = map(torch.stack, losses)
    assert plain[-10:].mean() < plain[:10].mean()
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)
