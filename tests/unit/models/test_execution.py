# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The ways in which merged blocks are computed on a CPU: one function, and when which is taken."""
import copy

import pytest
import torch
from torch import nn

from partialnet_mm.models import PartialNet, merged_block, merged_rows, merged_tokens


def merged_network(width=8, depths=(1, 2, 1, 1), **kwargs):
    torch.manual_seed(0)
    arch = dict(embed_dim=width, depths=depths, num_heads=2, act_cfg=dict(type='GELU'))
    network = PartialNet(arch, out_indices=(0, 1, 2, 3), **kwargs)
    network.init_weights()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if hasattr(module, 'position_bias'):
            nn.init.normal_(module.position_bias.table)
    network.switch_to_deploy()
    return network


def count_calls(monkeypatch, *names):
    """How often the functions of merged_block are called."""
    calls = dict.fromkeys(names, 0)
    for name in names:
        def counted(block, x, name=name, function=getattr(merged_block, name)):
            calls[name] += 1
            return function(block, x)
        monkeypatch.setattr(merged_block, name, counted)
    return calls


def assert_close(outs, expected):
    for out, other in zip(outs, expected):
        assert (out - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize('width, rows, tokens', [(8, 4, 1), (32, 4, 1), (80, 3, 2)])
def test_matrices_compute_the_same(monkeypatch, width, rows, tokens):
    network = merged_network(width)
    x = torch.randn(1, 3, 96, 64)
    with torch.enable_grad():
        expected = [out.detach() for out in network(x)]
    calls = count_calls(monkeypatch, 'run_rows', 'run_tokens')
    with torch.no_grad():
        assert_close(network(x), expected)
        # Blocks whose weights the cache can hold, and those of stage 4 and wider ones.
        assert calls == dict(run_rows=rows, run_tokens=tokens)
        assert_close(network(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize('size', [(32, 32), (65, 97), (224, 352)])
@pytest.mark.parametrize('values', [2000, 450_000])
def test_pieces_make_the_whole(monkeypatch, size, values):
    network = merged_network()
    x = torch.randn(1, 3, *size)
    with torch.enable_grad():
        expected = [out.detach() for out in network(x)]
    monkeypatch.setattr(merged_rows, 'CACHE_VALUES', values)
    pieces = []
    add_mlp = merged_rows._add_mlp
    monkeypatch.setattr(merged_rows, '_add_mlp', lambda block, rows, *parts: (
        pieces.append(rows.shape[1]), add_mlp(block, rows, *parts))[1])
    with torch.no_grad():
        assert_close(network(x), expected)
    places = [(size[0] // s) * (size[1] // s) for s in (4, 8, 8, 16)]
    assert sum(pieces) == sum(places)
    # The first block's hidden map has 16 channels.
    assert len(pieces) > 4 if values < 16 * places[0] else len(pieces) == 4


def test_matrices_have_the_maps_dtype_not_the_default_one():
    network = merged_network()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        torch.set_default_dtype(torch.float64)
        try:
            outs = network(x)
        finally:
            torch.set_default_dtype(torch.float32)
    for out, other in zip(outs, expected):
        assert torch.equal(out, other)


@pytest.mark.parametrize('why', ['gradients', 'batch', 'float64', 'training form', 'autocast', 'hook', 'ablation'])
def test_other_ways_stay_with_pytorch(monkeypatch, why):
    network = merged_network(gate='se') if why == 'ablation' else merged_network()
    x = torch.randn(1, 3, 64, 64)
    called = []
    if why == 'batch':
        x = torch.randn(2, 3, 64, 64)
    elif why == 'float64':
        network, x = network.double(), x.double()
    elif why == 'training form':
        network = PartialNet(network.arch).eval()
    elif why == 'hook':
        for stage in network.stages:
            for block in stage:
                block.mlp.register_forward_hook(lambda *_: called.append(1))
    calls = count_calls(monkeypatch, 'run_rows', 'run_tokens')
    with torch.set_grad_enabled(why == 'gradients'), torch.autocast('cpu', enabled=why == 'autocast'):
        network(x)
    # Stage 4 has no gate of its own to be another one.
    assert calls == dict(run_rows=0, run_tokens=int(why == 'ablation'))
    assert len(called) == (5 if why == 'hook' else 0)


def test_wide_blocks_store_weights_as_they_are_read():
    network = merged_network(112)
    block = network.stages[3][0]
    values = {name: value.clone() for name, value in network.state_dict().items()}
    for layer in (block.mlp.conv1, block.mlp.conv2, block.token_mixer.qkv, block.token_mixer.proj):
        assert layer.weight.flatten(1).t().is_contiguous()
    assert block.token_mixer.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert network.stages[0][0].mlp.conv1.weight.is_contiguous()
    # What is built in the merged form, loaded, copied or changed in type keeps it so.
    built = PartialNet(network.arch, out_indices=(0, 1, 2, 3), deploy=True).eval()
    built.load_state_dict(values)
    for other in (built, copy.deepcopy(network), network.half().float()):
        assert other.stages[3][0].mlp.conv1.weight.flatten(1).t().is_contiguous()
    for name, value in built.state_dict().items():
        assert torch.equal(value, values[name]), name


def test_other_devices_get_the_usual_order():
    network = merged_network(112).to('meta')
    for parameter in network.parameters():
        assert parameter.is_contiguous()


@pytest.mark.parametrize('mixer', ['pat_ch', 'conv', 'dpconv'])
def test_what_is_not_merged_is_stored_as_it_was(mixer):
    network = PartialNet(dict(embed_dim=112, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='GELU')),
                         token_mixers=mixer)
    weight = network.stages[3][0].mlp.conv1.weight
    for moved in (network.float(), network.to('meta')):
        assert moved.stages[3][0].mlp.conv1.weight.stride() == weight.stride()
    network = PartialNet('t0', token_mixers=mixer).to(memory_format=torch.channels_last).float().to('meta')
    stem = network.downsample_layers[0].conv.weight
    assert stem.is_contiguous(memory_format=torch.channels_last)


def test_weights_stay_parameters_of_the_same_shape():
    network = merged_network(112)
    block = network.stages[3][0]
    shapes = [parameter.shape for parameter in block.parameters()]
    parameters = list(block.parameters())
    merged_tokens.store_as_usual(block)
    assert all(a is b for a, b in zip(parameters, block.parameters()))
    assert [parameter.shape for parameter in block.parameters()] == shapes
    assert block.mlp.conv1.weight.is_contiguous()
