# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import pytest
import torch
from torch import nn

from partialnet_mm.models import PartialNet
from partialnet_mm.models._layers import checkpointed


def train_step(model, x):
    """Outputs, gradients and buffers of one step, with the random numbers of a fixed seed."""
    torch.manual_seed(1)
    outs = model(x)
    torch.manual_seed(2)
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    return outs, {name: p.grad for name, p in model.named_parameters()}, dict(model.named_buffers())


@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('options', [
    dict(), dict(norm_eval=True), dict(frozen_stages=2), dict(layer_scale_init_value=0.1),
    dict(drop_path_rate=0.5, attn_drop_rate=0.3, proj_drop_rate=0.3),
], ids=['plain', 'norm_eval', 'frozen', 'layer scale', 'random'])
def test_trains_as_without(batch, options, tiny_arch, randomize_norms):
    plain = PartialNet(tiny_arch, out_indices=(0, 1, 2, 3), **options)
    randomize_norms(plain).train()
    saving = PartialNet(tiny_arch, out_indices=(0, 1, 2, 3), with_cp=True, **options).train()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(batch, 3, 64, 96)
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
