# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The merged network as a module like any other: all its children are called, and all tools that take modules work."""
import copy
import io
import pickle

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from torch import nn
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters

from partialnet_mm.models import MergedBlock, PartialNet, PartialNetBlock, merge_model
from partialnet_mm.models._layers import PointwiseConv2d

ALL = (0, 1, 2, 3)


@pytest.fixture
def trained(tiny_arch, randomize_norms):
    return randomize_norms(PartialNet(tiny_arch, out_indices=ALL)).eval()


@pytest.fixture
def merged(trained):
    model = copy.deepcopy(trained)
    model.switch_to_deploy()
    return model


def relative_error(outs, expected):
    return max(((out.double() - want.double()).abs().max() / want.abs().max()).item()
               for out, want in zip(outs, expected))


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
    assert {out.dtype for out in merged(x.to(dtype))} == {dtype}


@pytest.mark.parametrize('form', ['trained', 'merged'])
@pytest.mark.parametrize('size', [(64, 64), (65, 97)])
def test_an_empty_batch_gives_empty_feature_maps(form, size, request):
    model = request.getfixturevalue(form)
    outs = model(torch.zeros(0, 3, *size))
    assert [tuple(out.shape) for out in outs] == [
        (0, 16 * 2**i, size[0] // 2**(2 + i), size[1] // 2**(2 + i)) for i in range(4)]


def called_children(model: nn.Module) -> list[str]:
    """All modules that compute: containers of modules have no forward of their own."""
    return [name for name, module in model.named_modules() if name and not isinstance(module, nn.ModuleList)]


@pytest.mark.parametrize('form', ['trained', 'merged'])
@pytest.mark.parametrize('options', [
    dict(), dict(gate='srm', layer_scale_init_value=0.5), dict(gate='se'), dict(gate='eca'), dict(gate='cbam'),
    dict(token_mixers=('full_ch', 'conv', 'partial_conv', 'full_sf'), spatial_attention='full')], ids=str)
@pytest.mark.parametrize('batch', [1, 2])
def test_every_child_is_called(form, options, batch, tiny_arch):
    model = PartialNet(tiny_arch, out_indices=ALL, **options).eval()
    if form == 'merged':
        model.switch_to_deploy()
    calls = set()

    class Wrapper(nn.Module):
        def __init__(self, name: str, wrapped: nn.Module) -> None:
            super().__init__()
            self.name, self.wrapped = name, wrapped

        def forward(self, *args: object) -> object:
            calls.add(self.name)
            return self.wrapped(*args)

    x = torch.randn(batch, 3, 64, 64)
    names = called_children(model)
    assert len(names) > 60
    with torch.no_grad():
        for name in names:
            owner, _, child = name.rpartition('.')
            owner = model.get_submodule(owner)
            wrapped = owner._modules[child]
            owner._modules[child] = Wrapper(name, wrapped)
            model(x)
            owner._modules[child] = wrapped
    assert calls == set(names)


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
    changed = merged(x)[3]
    handle.remove()
    everywhere.remove()
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(changed, merged(torch.cat((x, x)))[3][:1].where(torch.zeros(1).bool(), changed))
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
    assert relative_error([one], [before]) > 0.01
    torch.testing.assert_close(merged(torch.cat((x, x)))[3][:1], one, rtol=1e-4, atol=1e-5)


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


def test_a_constant_image_has_finite_gradients(merged):
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    merged(x)[3].sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in merged.stages.parameters())


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


def test_parametrizations_act(merged):
    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    x = torch.randn(1, 3, 64, 64)
    before = merged(x)[3]
    nn.utils.parametrize.register_parametrization(merged.stages[2][0].mlp.conv2, 'weight', Half())
    after = merged(x)[3]
    nn.utils.parametrize.remove_parametrizations(merged.stages[2][0].mlp.conv2, 'weight', leave_parametrized=True)
    assert relative_error([after], [before]) > 1e-3
    torch.testing.assert_close(merged(x)[3], after)


@pytest.mark.parametrize('order', ['merged, then quantized', 'quantized, then merged'])
def test_dynamic_quantization(order, trained):
    if 'fbgemm' not in torch.backends.quantized.supported_engines:
        pytest.skip('this torch has no quantized operators')
    x = torch.randn(1, 3, 64, 64)
    expected = trained(x)
    steps = [lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}),
             lambda model: model.switch_to_deploy() or model]
    for step in steps if order.startswith('quantized') else steps[::-1]:
        trained = step(trained)
    assert relative_error(trained.to('cpu')(x), expected) < 0.1


def test_drop_path_still_drops_in_training(tiny_arch):
    model = PartialNet(tiny_arch, drop_path_rate=0.9, deploy=True).train()
    x = torch.randn(8, 3, 64, 64)
    assert not torch.equal(model(x)[0], model(x)[0])
    assert torch.equal(model.eval()(x)[0], model(x)[0])


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


def loop(model):
    for module in model.modules():
        if hasattr(module, 'switch_to_deploy'):
            module.switch_to_deploy()
    return model


def inner_first(model):
    for module in reversed(list(model.modules())):
        if hasattr(module, 'switch_to_deploy'):
            module.switch_to_deploy()
    return model


def apply(model):
    return model.apply(lambda module: module.switch_to_deploy() if hasattr(module, 'switch_to_deploy') else None)


def reparameterize(model):
    from timm.utils.model import reparameterize_model
    return reparameterize_model(nn.ModuleDict(dict(backbone=model)))['backbone']


def switch(model):
    model.switch_to_deploy()
    return model


@pytest.mark.parametrize('habits', [
    (fuse_conv_bn, ), (loop, ), (inner_first, ), (apply, ), (reparameterize, ), (switch, fuse_conv_bn),
    (fuse_conv_bn, switch), (loop, fuse_conv_bn, apply), (fuse_conv_bn, fuse_conv_bn, inner_first, switch)
], ids=lambda habits: ' then '.join(habit.__name__ for habit in habits))
@pytest.mark.parametrize('options', [
    dict(), dict(split_ratio=0.5), dict(split_ratio=0.5, spatial_attention='none'), dict(gate='srm'),
    dict(token_mixers=('conv', 'full_ch', 'partial_conv', 'full_sf'), spatial_attention='full'),
    dict(token_mixers='dpconv_ch'), dict(layer_scale_init_value=0.5)], ids=str)
@torch.no_grad()
def test_all_ways_of_fusing_keep_the_outputs(habits, options, tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, out_indices=ALL, **options)).eval()
    x = torch.rand(2, 3, 96, 128)
    expected = model(x)
    for habit in habits:
        model = habit(model).eval()
        assert relative_error(model(x), expected) < 1e-5


def test_modules_that_cannot_merge_alone_have_no_public_switch(tiny_arch):
    model = PartialNet(tiny_arch)
    assert [name for name, module in model.named_modules() if hasattr(module, 'switch_to_deploy')] == ['']
    assert merge_model(nn.Sequential(model)) == ['0']
    with pytest.raises(TypeError, match='Conv2d cannot be merged: none of its modules has switch_to_deploy'):
        merge_model(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize('name', ['stages.2.1.mlp.conv1', 'stages.2.1.spatial_attention.rest_conv',
                                  'stages.1.0.token_mixer.gate.conv', 'downsample_layers.2.conv'])
def test_what_sits_on_a_folded_layer_is_refused(name, trained):
    x = torch.randn(1, 3, 64, 64)
    owner, child = name.rsplit('.', 1)
    owner = trained.get_submodule(owner)
    setattr(owner, child, nn.Sequential(owner._modules[child]))
    expected = trained(x)
    with pytest.raises(TypeError, match='is a Sequential: switch_to_deploy.. of PartialNet folds plain convolutions'):
        trained.switch_to_deploy()
    # Nothing was changed.
    assert all(isinstance(block, PartialNetBlock) for stage in trained.stages for block in stage)
    assert all(map(torch.equal, trained(x), expected))


def test_fusing_does_not_change_the_order_of_parameters(tiny_arch):
    # Optimizers know parameters by their order in checkpoints.
    names = [name for name, _ in PartialNet(tiny_arch).stages[0][0].named_parameters()]
    assert names == [
        'token_mixer.conv.weight', 'token_mixer.gate.conv.weight', 'token_mixer.gate.norm.weight',
        'token_mixer.gate.norm.bias', 'token_mixer.norm.weight', 'token_mixer.norm.bias', 'mlp.conv1.weight',
        'mlp.norm.weight', 'mlp.norm.bias', 'mlp.conv2.weight', 'spatial_attention.logit_conv.weight',
        'spatial_attention.attended_norm.weight', 'spatial_attention.attended_norm.bias',
        'spatial_attention.rest_norm.weight', 'spatial_attention.rest_norm.bias', 'spatial_attention.rest_conv.weight']
