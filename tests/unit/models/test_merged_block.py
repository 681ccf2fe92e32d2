# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The merged form: it computes the same, and it is a network like any other for all that takes modules."""
import copy
import io
import pickle

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters

from partialnet_mm.checkpoint.pretrained import load_pretrained
from partialnet_mm.models import MergedBlock, PartialNet, PartialNetBlock, merge_model
from partialnet_mm.models._layers import PointwiseConv2d
from tests.helpers.networks import ALL, random_loss, relative_error


@pytest.fixture
def trained(tiny_arch, randomize_norms):
    return randomize_norms(PartialNet(tiny_arch, out_indices=ALL)).eval()


@pytest.fixture
def merged(trained):
    model = copy.deepcopy(trained)
    model.switch_to_deploy()
    return model


@pytest.mark.parametrize('dtype, bound', [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize('batch, size', [(1, (32, 32)), (2, (65, 97)), (5, (64, 96)), (1, (224, 160))])
@torch.no_grad()
def test_any_batch_size_and_dtype(batch, size, dtype, bound, trained):
    x = torch.randn(batch, 3, *size, dtype=torch.float64)
    expected = trained.double()(x)
    trained.switch_to_deploy()
    merged = trained.to(dtype)
    assert relative_error(merged(x.to(dtype)), expected) < bound
    assert relative_error(merged(x.to(dtype, memory_format=torch.channels_last)), expected) < bound
    assert relative_error(merged(x[-1:].to(dtype)), [out[-1:] for out in expected]) < bound
    assert {out.dtype for out in merged(x.to(dtype))} == {p.dtype for p in merged.parameters()} == {dtype}


@pytest.mark.parametrize('arch', PartialNet.arch_settings)
@torch.no_grad()
def test_same_function_in_every_arch(arch, randomize_norms):
    model = randomize_norms(PartialNet(arch, out_indices=ALL)).eval()
    x = torch.randn(1, 3, 64, 96)
    expected = model(x)
    model.switch_to_deploy()
    assert relative_error(model(x), expected) < 1e-5


@pytest.mark.parametrize('options', [
    dict(layer_scale_init_value=0.5), dict(split_ratio=1), dict(split_ratio=[0.5, 1 / 16, 1, 0.25, 1]),
    dict(act_cfg=dict(type='SiLU')), dict(act_cfg=dict(type='GELU')), dict(norm_cfg=dict(type='BN', eps=1e-3)),
    dict(in_channels=1), dict(frozen_stages=2, norm_eval=True), dict(with_cp=True, drop_path_rate=0.5),
    dict(out_norm=False), dict(norm_cfg=dict(type='BN', affine=False)), dict(out_indices=(3, )),
    dict(token_mixers='full_ch', gate='srm'), dict(token_mixers='pat_ch', gate='se'), dict(gate='eca'),
    dict(gate='cbam'), dict(gate=dict(type='SEGate', reduction=2)), dict(token_mixers=dict(type='PartialConv')),
    dict(token_mixers='dpconv'), dict(token_mixers='dpconv_ch'),
    dict(token_mixers=('conv', 'depthwise_conv', 'partial_conv', 'full_sf')), dict(spatial_attention='full'),
    dict(spatial_attention='full', layer_scale_init_value=0.5),
    dict(spatial_attention='none', layer_scale_init_value=0.5),
    dict(token_mixers='partial_conv', spatial_attention='none'),
], ids=str)
@torch.no_grad()
def test_same_function_with_every_option(options, tiny_arch, randomize_norms):
    options = dict(dict(out_indices=ALL), **options)
    model = randomize_norms(PartialNet(tiny_arch, **options)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith('layer_scale'):
            nn.init.normal_(parameter)
    x = torch.randn(2, options.get('in_channels', 3), 65, 97)
    expected = model(x)
    model.switch_to_deploy()
    assert relative_error(model(x), expected) < 1e-5
    deployed = PartialNet(tiny_arch, deploy=True, **options).eval()
    deployed.load_state_dict(model.state_dict(), strict=True)
    assert all(map(torch.equal, deployed(x), model(x)))


def test_same_function_after_a_training(tiny_arch):
    model = PartialNet(tiny_arch, out_indices=ALL, layer_scale_init_value=1.).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        loss = sum(out[:, ::2].square().mean() for out in model(torch.randn(4, 3, 64, 64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(2, 3, 64, 64)
    expected = model.eval()(x)
    model.switch_to_deploy()
    assert relative_error(model(x), expected) < 1e-5


def test_sync_bn_with_statistics_merges(tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, norm_cfg=dict(type='SyncBN'))).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.num_batches_tracked.fill_(1)
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    model.switch_to_deploy()
    assert relative_error(model(x), expected) < 1e-5


@pytest.mark.parametrize('index', [0, 3], ids=['v1', 'v2'])
@torch.no_grad()
def test_the_trained_block_stays_as_it_is(index, trained):
    block = trained.stages[index][0]
    x = torch.randn(2, 16 * 2**index, 5, 6)
    expected = block(x)
    merged = MergedBlock(block).eval()
    assert relative_error(merged(x), expected) < 1e-5
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize('form', ['trained', 'merged'])
@pytest.mark.parametrize('size', [(64, 64), (65, 97)])
def test_an_empty_batch_gives_empty_feature_maps(form, size, request):
    model = request.getfixturevalue(form)
    outs = model(torch.zeros(0, 3, *size))
    assert [tuple(out.shape) for out in outs] == [
        (0, 16 * 2**i, size[0] // 2**(2 + i), size[1] // 2**(2 + i)) for i in range(4)]


@pytest.mark.parametrize('out_indices, norms', [((3, ), 0), (ALL, 4), ((1, 2), 2)])
def test_only_norms_of_returned_feature_maps_remain(out_indices, norms, tiny_arch):
    model = PartialNet(tiny_arch, out_indices=out_indices, layer_scale_init_value=0.1)
    model.switch_to_deploy()
    assert sum(isinstance(module, _BatchNorm) for module in model.modules()) == norms
    names = dict(model.named_parameters())
    assert not any('layer_scale' in name for name in names)
    assert names['stages.0.0.mlp.conv2.weight'].shape == (16, 32, 1, 1)
    assert names['stages.0.0.spatial_attention.logit_conv.weight'].shape == (1, 32, 1, 1)
    assert names['stages.0.0.spatial_attention.shift'].shape == (1, 8, 1, 1)


def test_merged_checkpoints_of_version_0_1_are_read(merged, tmp_path, tiny_arch):
    """They have the logit of PAT_sp as the last channel of the convolution before it."""
    old = merged.state_dict()
    for name in [name for name in old if 'logit_conv' in name]:
        conv2 = name.replace('spatial_attention.logit_conv', 'mlp.conv2')
        old[conv2] = torch.cat((old[conv2], old.pop(name)))
    assert old['stages.0.0.mlp.conv2.weight'].shape == (17, 32, 1, 1)
    torch.save(dict(state_dict=old), tmp_path / 'old.pth')
    models = [PartialNet(tiny_arch, out_indices=ALL, deploy=True) for _ in range(2)]
    models[0].load_state_dict(old, strict=True)
    load_pretrained(models[1], str(tmp_path / 'old.pth'))
    x = torch.randn(1, 3, 64, 64)
    for model in models:
        assert all(map(torch.equal, model.eval()(x), merged(x)))


@pytest.mark.parametrize('arch', ['t0', 's', 'l'])
def test_deploy_is_build_then_merge(arch):
    with torch.device('meta'):
        built = PartialNet(arch, out_indices=ALL, deploy=True)
        switched = PartialNet(arch, out_indices=ALL)
        switched.switch_to_deploy()
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (built, switched)]
    assert shapes[0] == shapes[1]
    assert built.training and not switched.training
    assert all(isinstance(block, MergedBlock) for stage in built.stages for block in stage)


@pytest.mark.parametrize('deploy', [False, True])
def test_second_switch_does_nothing(deploy, tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, out_indices=ALL, deploy=deploy))
    model.switch_to_deploy()
    modules, weights = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    model.switch_to_deploy()
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_modes_of_the_merged_form(tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, drop_path_rate=0.9)).train()
    model.switch_to_deploy()
    assert not any(module.training for module in model.modules())
    x = torch.randn(8, 3, 64, 64)
    expected = model(x)[0]
    assert model.train().training and model.stages[3][0].drop_path.training
    assert not torch.equal(model(x)[0], model(x)[0])  # stochastic depth remains
    assert torch.equal(model.eval()(x)[0], expected)
    # Nothing else depends on the mode.
    still = PartialNet(tiny_arch, deploy=True)
    assert still.train()(x)[0].equal(still.eval()(x)[0])


def test_checkpoints_of_the_two_forms_do_not_mix(trained, merged):
    for model, other in ((trained, merged), (merged, trained)):
        with pytest.raises(RuntimeError, match='Missing key'):
            model.load_state_dict(other.state_dict())


@pytest.mark.parametrize('norm_cfg, error, fragments', [
    (dict(type='GN', num_groups=2), TypeError, ('the norm of Downsample', 'GroupNorm', 'allowed are BN and SyncBN')),
    (dict(type='SyncBN'), ValueError, ('the norm of Downsample', 'SyncBatchNorm', 'has seen no batch', 'load')),
    (dict(type='BN', track_running_stats=False), ValueError,
     ('the norm of Downsample', 'BatchNorm2d', 'track_running_stats=False')),
], ids=lambda value: value['type'] if isinstance(value, dict) else '')
def test_norms_that_cannot_be_folded_are_refused(norm_cfg, error, fragments, tiny_arch):
    model = PartialNet(tiny_arch, norm_cfg=norm_cfg).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)[0]
    with pytest.raises(error) as raised:
        model.switch_to_deploy()
    assert all(fragment in str(raised.value) for fragment in fragments)
    assert torch.equal(model(x)[0], expected)


@pytest.mark.parametrize('name', ['stages.2.1.mlp.conv1', 'stages.2.1.spatial_attention.rest_conv',
                                  'stages.1.0.token_mixer.gate.conv', 'downsample_layers.2.conv'])
def test_what_sits_on_a_folded_layer_is_refused(name, trained):
    x = torch.randn(1, 3, 64, 64)
    owner, child = name.rsplit('.', 1)
    owner = trained.get_submodule(owner)
    setattr(owner, child, nn.Sequential(owner._modules[child]))
    expected = trained(x)
    with pytest.raises(TypeError, match='is a Sequential: PartialNet folds plain convolutions'):
        trained.switch_to_deploy()
    # Nothing was changed.
    assert all(isinstance(block, PartialNetBlock) for stage in trained.stages for block in stage)
    assert all(map(torch.equal, trained(x), expected))


# A module computes by calling its children.

def called_children(model: nn.Module) -> list[str]:
    """All modules that compute: containers of modules have no forward of their own."""
    return [name for name, module in model.named_modules()
            if name and not isinstance(module, (nn.ModuleList, nn.ModuleDict))]


@pytest.mark.parametrize('form', ['trained', 'merged'])
@pytest.mark.parametrize('options', [
    dict(), dict(gate='srm', layer_scale_init_value=0.5), dict(gate='se'), dict(gate='eca'), dict(gate='cbam'),
    dict(token_mixers=('full_ch', 'conv', 'partial_conv', 'full_sf'), spatial_attention='full')], ids=str)
@torch.no_grad()
def test_every_child_is_called(form, options, tiny_arch):
    model = PartialNet(tiny_arch, out_indices=ALL, **options).eval()
    if form == 'merged':
        model.switch_to_deploy()
    calls = set()

    class Wrapper(nn.Module):
        """Hides the weight of what it wraps, as an adapter or a quantizer may."""

        def __init__(self, name: str, wrapped: nn.Module) -> None:
            super().__init__()
            self.name, self.wrapped = name, wrapped

        def forward(self, *args: object) -> object:
            calls.add(self.name)
            return self.wrapped(*args)

    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    names = called_children(model)
    assert len(names) > 60
    for name in reversed(names):  # the inner ones first
        owner, _, child = name.rpartition('.')
        children = model.get_submodule(owner)._modules
        children[child] = Wrapper(name, children[child])
    for batch in (1, 2):
        calls.clear()
        outs = model(x[:batch])
        assert calls == set(names)
    assert all(map(torch.equal, outs, expected))


def test_every_child_is_called_in_training(tiny_arch):
    model = PartialNet(tiny_arch, out_indices=ALL, with_cp=True, drop_path_rate=0.5).train()
    calls = set()
    for name in called_children(model):
        model.get_submodule(name).register_forward_hook(lambda *args, name=name: calls.add(name))
    for batch in (1, 2):  # one image has one value per channel in the gates
        calls.clear()
        sum(out.sum() for out in model(torch.randn(batch, 3, 64, 64))).backward()
        assert calls == set(called_children(model))


def test_hooks_change_what_they_return(merged):
    x = torch.randn(1, 3, 64, 64)
    before = merged(x)[3]
    seen = []
    handle = merged.stages[2][0].mlp.conv1.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    everywhere = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(module))
    changed, of_two = merged(x)[3], merged(torch.cat((x, x)))[3]
    handle.remove()
    everywhere.remove()
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(of_two[:1], changed, rtol=1e-4, atol=1e-5)
    assert set(seen) >= {merged.get_submodule(name) for name in called_children(merged)}
    assert torch.equal(merged(x)[3], before)


def test_adapters_act_on_one_image_as_on_two(merged):
    class Adapter(nn.Module):  # as LoRA layers: the weight of the base layer can be seen
        def __init__(self, conv: nn.Conv2d) -> None:
            super().__init__()
            self.base, self.extra = conv, nn.Conv2d(conv.in_channels, conv.out_channels, 1)

        weight = property(lambda self: self.base.weight)
        bias = property(lambda self: self.base.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.extra(x)

    x = torch.randn(1, 3, 64, 64)
    before = merged(x)[3]
    for stage in merged.stages:
        for block in stage:
            block.mlp.conv1, block.mlp.conv2 = Adapter(block.mlp.conv1), Adapter(block.mlp.conv2)
    one = merged(x)[3]
    assert relative_error(one, before) > 0.01
    torch.testing.assert_close(merged(torch.cat((x, x)))[3][:1], one, rtol=1e-4, atol=1e-5)


def test_parametrizations_act(merged):
    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    x = torch.randn(1, 3, 64, 64)
    before = merged(x)[3]
    nn.utils.parametrize.register_parametrization(merged.stages[2][0].mlp.conv2, 'weight', Half())
    after = merged(x)[3]
    nn.utils.parametrize.remove_parametrizations(merged.stages[2][0].mlp.conv2, 'weight', leave_parametrized=True)
    assert relative_error(after, before) > 1e-3
    torch.testing.assert_close(merged(x)[3], after)


@pytest.mark.parametrize('form', ['trained', 'merged'])
def test_nothing_is_left_of_a_run_without_data(form, request):
    from torch._subclasses.fake_tensor import FakeTensorMode
    model = request.getfixturevalue(form)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        state = {name: vars(module).copy() for name, module in model.named_modules()}
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model(torch.empty(1, 3, 64, 64))[3].shape == (1, 128, 2, 2)
        for out, want in zip(model(x), expected):
            assert type(out) is torch.Tensor
            assert torch.equal(out, want)
    assert {name: vars(module).keys() for name, module in model.named_modules()} == {
        name: values.keys() for name, values in state.items()}


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('form', ['trained', 'merged'])
def test_feature_maps_have_the_memory_format_of_the_image(form, memory_format, request):
    x = torch.randn(2, 3, 96, 128).contiguous(memory_format=memory_format)
    outs = request.getfixturevalue(form)(x)
    assert all(out.is_contiguous(memory_format=memory_format) for out in outs)


# Weights and gradients.

def test_pointwise_convolution_is_a_convolution():
    layer = PointwiseConv2d(5, 7, 1)
    x = torch.randn(2, 5, 3, 4)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias)
    for image in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(layer(image), expected)
    plain = PointwiseConv2d(5, 7, 1, bias=False)
    torch.testing.assert_close(plain(x), nn.functional.conv2d(x, plain.weight))


def test_weights_are_contiguous_and_go_through_safetensors(merged, tiny_arch):
    from safetensors.torch import load, save
    assert all(value.is_contiguous() for value in merged.state_dict().values())
    other = PartialNet(tiny_arch, out_indices=ALL, deploy=True).eval()
    other.load_state_dict(load(save(merged.state_dict())), assign=True)
    x = torch.randn(2, 3, 64, 64)
    assert all(map(torch.equal, other(x), merged(x)))


def test_copies_pickles_and_moves(merged):
    x = torch.randn(1, 3, 64, 64)
    expected = merged(x)
    buffer = io.BytesIO()
    torch.save(merged, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(merged), pickle.loads(pickle.dumps(merged)), torch.load(buffer, weights_only=False),
                  copy.deepcopy(merged).double().float(), copy.deepcopy(merged).share_memory(),
                  copy.deepcopy(merged).to(memory_format=torch.channels_last)):
        assert relative_error(other(x), expected) < 1e-6
    empty = copy.deepcopy(merged).to('meta')
    empty.load_state_dict(merged.state_dict(), assign=True)
    assert all(map(torch.equal, empty(x), expected))


def test_gradients_of_the_merged_form_are_those_of_the_trained(trained):
    merged = copy.deepcopy(trained.double())
    merged.switch_to_deploy()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    grads = []
    for model in (trained, merged):
        image = x.clone().requires_grad_()
        sum((out * out.detach().roll(1, 3)).sum() for out in model(image)).backward()
        grads.append(image.grad)
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-8 * grads[0].abs().max().item())


@pytest.mark.parametrize('constant', [False, True])
def test_every_weight_of_the_merged_form_gets_a_gradient(constant, merged):
    x = torch.zeros(1, 3, 64, 64) if constant else torch.randn(2, 3, 96, 96)
    random_loss(merged(x.requires_grad_())).backward()
    assert torch.isfinite(x.grad).all()
    for name, parameter in merged.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert constant or parameter.grad.abs().sum() > 0, name


def test_tools_that_rewrite_parameters(merged):
    x = torch.randn(2, 3, 64, 64)
    vector = parameters_to_vector(merged.parameters())
    before = merged(x)[3]
    vector_to_parameters(vector * 1.5, merged.parameters())
    assert not torch.allclose(merged(x)[3], before)
    vector_to_parameters(vector, merged.parameters())
    torch.testing.assert_close(merged(x)[3], before)

    prune.l1_unstructured(merged.stages[3][0].mlp.conv1, 'weight', 0.5)
    pruned = merged(x)[3]
    assert not torch.allclose(pruned, before)
    prune.remove(merged.stages[3][0].mlp.conv1, 'weight')
    torch.testing.assert_close(merged(x)[3], pruned)

    optimizer = torch.optim.LBFGS(merged.parameters(), lr=0.01, max_iter=2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = merged(x)[3].square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert closure() < first


@pytest.mark.parametrize('order', ['merged, then quantized', 'quantized, then merged'])
def test_dynamic_quantization(order, trained):
    if 'fbgemm' not in torch.backends.quantized.supported_engines:
        pytest.skip('this torch has no quantized operators')
    x = torch.randn(1, 3, 64, 64)
    expected = trained(x)
    steps = [lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}), switch]
    for step in steps if order.startswith('quantized') else steps[::-1]:
        trained = step(trained)
    assert relative_error(trained.to('cpu')(x), expected) < 0.1


# What people call to fuse a network.

def switch(model):
    model.switch_to_deploy()
    return model


def loop(model, order=list):
    for module in order(list(model.modules())):
        if hasattr(module, 'switch_to_deploy'):
            module.switch_to_deploy()
    return model


def inner_first(model):
    return loop(model, reversed)


def apply(model):
    return model.apply(lambda module: module.switch_to_deploy() if hasattr(module, 'switch_to_deploy') else None)


def reparameterize(model):
    from timm.utils.model import reparameterize_model
    return reparameterize_model(nn.ModuleDict(dict(backbone=model)))['backbone']


@pytest.mark.parametrize('habits', [
    (fuse_conv_bn, fuse_conv_bn, inner_first, switch), (loop, fuse_conv_bn, apply), (inner_first, ), (apply, ),
    (reparameterize, ), (switch, fuse_conv_bn)
], ids=lambda habits: ' then '.join(habit.__name__ for habit in habits))
@pytest.mark.parametrize('options', [
    dict(), dict(split_ratio=0.5), dict(split_ratio=0.5, spatial_attention='none'), dict(gate='srm'),
    dict(token_mixers=('conv', 'full_ch', 'partial_conv', 'full_sf'), spatial_attention='full'),
    dict(token_mixers='dpconv_ch'), dict(layer_scale_init_value=0.5)], ids=str)
@torch.no_grad()
def test_all_ways_of_fusing_keep_the_outputs(habits, options, tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, out_indices=ALL, **options)).eval()
    x = torch.rand(2, 3, 64, 96)
    expected = model(x)
    for habit in habits:  # after each, so that a longer list covers its beginnings
        model = habit(model).eval()
        assert relative_error(model(x), expected) < 1e-5


def test_modules_that_cannot_merge_alone_have_no_public_switch(tiny_arch):
    model = PartialNet(tiny_arch)
    assert [name for name, module in model.named_modules() if hasattr(module, 'switch_to_deploy')] == ['']
    assert merge_model(nn.Sequential(model)) == ['0']
    with pytest.raises(TypeError, match='Conv2d cannot be merged: none of its modules has switch_to_deploy'):
        merge_model(nn.Conv2d(1, 1, 1))


def test_fusing_does_not_change_the_order_of_parameters(tiny_arch):
    # Optimizers know parameters by their order in checkpoints.
    names = [name for name, _ in PartialNet(tiny_arch).stages[0][0].named_parameters()]
    assert names == [
        'token_mixer.conv.weight', 'token_mixer.gate.conv.weight', 'token_mixer.gate.norm.weight',
        'token_mixer.gate.norm.bias', 'token_mixer.norm.weight', 'token_mixer.norm.bias', 'mlp.conv1.weight',
        'mlp.norm.weight', 'mlp.norm.bias', 'mlp.conv2.weight', 'spatial_attention.logit_conv.weight',
        'spatial_attention.attended_norm.weight', 'spatial_attention.attended_norm.bias',
        'spatial_attention.rest_norm.weight', 'spatial_attention.rest_norm.bias', 'spatial_attention.rest_conv.weight']
