# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import pytest
import torch
from torch import nn

from partialnet_mm.analysis.measure import kept_memory
from partialnet_mm.models import PartialNet
from partialnet_mm.models._layers import checkpointed


def train_step(model, x):
    """Outputs, gradients and buffers of one step, with the random numbers of a fixed seed."""
    torch.manual_seed(1)
    outs = model(x)
    torch.manual_seed(2)
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    return outs, {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())


def assert_trains_alike(plain, saving, x):
    outs, gradients, buffers = train_step(plain, x)
    saved_outs, saved_gradients, saved_buffers = train_step(saving, x)
    for out, saved in zip(outs, saved_outs):
        torch.testing.assert_close(saved, out)
    assert set(gradients) == set(saved_gradients)
    for name, gradient in gradients.items():
        if gradient is None:
            assert saved_gradients[name] is None, name
        else:
            torch.testing.assert_close(saved_gradients[name], gradient, msg=name)
    for name, value in buffers.items():
        torch.testing.assert_close(saved_buffers[name], value, msg=name)


@pytest.mark.parametrize('with_cp', [True, 'norm_act'])
@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('options', [
    dict(), dict(norm_eval=True), dict(frozen_stages=2), dict(layer_scale_init_value=0.1),
    dict(drop_path_rate=0.5, attn_drop_rate=0.3, proj_drop_rate=0.3),
], ids=['plain', 'norm_eval', 'frozen', 'layer scale', 'random'])
def test_trains_as_without(options, batch, with_cp, tiny_arch, randomize_norms):
    plain, saving = (PartialNet(tiny_arch, out_indices=(0, 1, 2, 3), with_cp=cp, **options).double()
                     for cp in (False, with_cp))
    randomize_norms(plain).train()
    saving.load_state_dict(plain.state_dict())
    assert list(saving.state_dict()) == list(plain.state_dict())
    assert_trains_alike(plain, saving.train(), torch.randn(batch, 3, 64, 96, dtype=torch.float64))


@pytest.mark.parametrize('options', [
    dict(act_cfg=dict(type='GELU')), dict(act_cfg=dict(type='PReLU')), dict(norm_cfg=dict(type='SyncBN')),
    dict(norm_cfg=dict(type='GN', num_groups=1)), dict(norm_cfg=dict(type='BN', momentum=None)),
    dict(gate='se'), dict(spatial_attention='full', token_mixers='full_ch'), dict(spatial_attention='none'),
    dict(token_mixers='dpconv_ch'), dict(token_mixers='partial_conv'), dict(split_ratio=1.),
], ids=str)
def test_norm_act_is_for_all_layers(options, tiny_arch, randomize_norms):
    plain, saving = (PartialNet(tiny_arch, with_cp=with_cp, **options).double() for with_cp in (False, 'norm_act'))
    randomize_norms(plain).train()
    saving.load_state_dict(plain.state_dict())
    assert_trains_alike(plain, saving.train(), torch.randn(2, 3, 64, 64, dtype=torch.float64))


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_norm_act_in_mixed_precision_keeps_less(memory_format):
    arch = dict(embed_dim=16, depths=(2, 2, 6, 1), num_heads=2, act_cfg=dict(type='ReLU', inplace=True))
    plain, saving = (PartialNet(arch, with_cp=with_cp).to(memory_format=memory_format).train()
                     for with_cp in (False, 'norm_act'))
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 64, 64).to(memory_format=memory_format)
    with torch.autocast('cpu', torch.bfloat16):
        assert kept_per_image(saving, x) < 0.6 * kept_per_image(plain, x)
        for name, value in saving.named_buffers():
            torch.testing.assert_close(value, plain.get_buffer(name), msg=name)
        out, saved = plain(x)[0], saving(x)[0]
    torch.testing.assert_close(saved, out, rtol=0, atol=0)
    for result in (out, saved):
        result.float().square().sum().backward()
    gradients = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (plain, saving)]
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def kept_per_image(model, x):
    half = len(x) // 2
    return (kept_memory(model, x) - kept_memory(model, x[:half])) / half


def test_norm_act_honours_hooks(tiny_arch):
    """A hook on a module sees its call, also one on a module whose steps the block would call one by one."""
    model = PartialNet(tiny_arch, with_cp='norm_act').train()
    block = model.stages[0][0]
    calls = []
    for module in block.modules():
        module.register_forward_hook(lambda module, *_: calls.append(module))
    model(torch.randn(2, 3, 64, 64))[0].sum().backward()
    assert set(calls) == set(block.modules())


def test_norm_act_twice_backward(tiny_arch):
    """A kept graph gives the same gradients again, and changes no statistics."""
    model = PartialNet(tiny_arch, with_cp='norm_act').train()
    loss = model(torch.randn(2, 3, 64, 64))[0].square().sum()
    weight = model.stages[0][0].mlp.conv1.weight
    first, = torch.autograd.grad(loss, weight, retain_graph=True)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], first)
    for name, value in model.named_buffers():
        torch.testing.assert_close(value, buffers[name], msg=name)


def test_running_statistics_take_each_batch_once():
    layer = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(8, 3, 5, 5, requires_grad=True)
    features = layer[0](x)
    checkpointed(layer, layer, x).sum().backward()
    assert layer[1].num_batches_tracked == 1
    torch.testing.assert_close(layer[1].running_mean, 0.1 * features.mean((0, 2, 3)))
    torch.testing.assert_close(layer[1].running_var, 0.9 + 0.1 * features.var((0, 2, 3)))


def test_keeps_no_activations_of_the_block():
    layer = nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(6)])
    x = torch.randn(2, 4, 5, 5, requires_grad=True)

    def kept(run):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
            run(x)
        return saved.count(x.shape)

    assert kept(layer) == 6
    assert kept(lambda x: checkpointed(layer, layer, x)) <= 1


def test_only_training_computes_twice(tiny_arch):
    model = PartialNet(tiny_arch, with_cp=True)
    calls = []
    model.stages[0][0].token_mixer.register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 3, 64, 64)
    model.eval()(x)[0].sum().backward()
    assert len(calls) == 1
    model.train()(x)[0].sum().backward()
    assert len(calls) == 3


def test_an_error_in_the_second_computation_leaves_the_statistics():
    layer = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    calls = []

    def fail_the_second_time(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError('second')

    layer[1].register_forward_pre_hook(fail_the_second_time)
    buffers = dict(layer[0].named_buffers())
    out = checkpointed(layer, layer, torch.randn(2, 4, 3, 3, requires_grad=True))
    with pytest.raises(RuntimeError, match='second'):
        out.sum().backward()
    assert all(value is buffers[name] for name, value in layer[0].named_buffers())
    assert layer[0].num_batches_tracked == 1
