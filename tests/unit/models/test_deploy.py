# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The merged form: the same function, fewer layers, checkpoints of its own."""
import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from partialnet_mm.models import PartialNet

ALL = (0, 1, 2, 3)


def relative_error(outs, expected):
    return max(((out - want).abs().max() / want.abs().max()).item() for out, want in zip(outs, expected))


@pytest.mark.parametrize('out_indices', [(3, ), ALL], ids=['classification', 'dense'])
@pytest.mark.parametrize('arch', list(PartialNet.arch_settings))
def test_same_function_in_every_arch(arch, out_indices, randomize_norms):
    model = randomize_norms(PartialNet(arch, out_indices=out_indices)).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy()
        outs = model(x)
    assert len(outs) == len(expected) == len(out_indices)
    assert relative_error(outs, expected) < 1e-5


@pytest.mark.parametrize('options', [
    dict(layer_scale_init_value=0.5), dict(split_ratio=1), dict(split_ratio=[0.5, 1 / 16, 1, 0.25, 1]),
    dict(act_cfg=dict(type='SiLU')), dict(norm_cfg=dict(type='BN', eps=1e-3)), dict(in_channels=1),
    dict(frozen_stages=2, norm_eval=True), dict(with_cp=True, drop_path_rate=0.5), dict(out_norm=False),
    dict(norm_cfg=dict(type='BN', affine=False)),
    dict(token_mixers='full_ch', gate='srm'), dict(token_mixers='pat_ch', gate='se'), dict(gate='eca'),
    dict(gate='cbam'), dict(gate=dict(type='SEGate', reduction=2)), dict(token_mixers=dict(type='PartialConv')),
    dict(token_mixers='dpconv'), dict(token_mixers='dpconv_ch'),
    dict(token_mixers=('conv', 'depthwise_conv', 'partial_conv', 'full_sf')), dict(spatial_attention='full'),
    dict(spatial_attention='full', layer_scale_init_value=0.5),
    dict(spatial_attention='none', layer_scale_init_value=0.5),
    dict(token_mixers='partial_conv', spatial_attention='none'),
], ids=str)
def test_same_function_with_every_option(options, tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, out_indices=ALL, **options)).eval()
    for stage in model.stages:
        for block in stage:
            if block.layer_scale is not None:
                nn.init.normal_(block.layer_scale)
    x = torch.randn(2, options.get('in_channels', 3), 65, 97)
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy()
        assert relative_error(model(x), expected) < 1e-5

        deployed = PartialNet(tiny_arch, out_indices=ALL, deploy=True, **options).eval()
        assert deployed.load_state_dict(model.state_dict(), strict=True)
        for out, want in zip(deployed(x), model(x)):
            assert torch.equal(out, want)


def test_switch_to_deploy_of_a_trained_model(tiny_arch):
    model = PartialNet(tiny_arch, out_indices=ALL, layer_scale_init_value=1.)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(3):
        loss = sum(out[:, ::2].square().mean() for out in model(torch.randn(4, 3, 64, 64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(x)
        model.switch_to_deploy()
        assert relative_error(model(x), expected) < 1e-5


@pytest.mark.parametrize('out_indices, norms', [((3, ), 0), (ALL, 4), ((1, 2), 2)])
def test_only_norms_of_returned_maps_remain(out_indices, norms, tiny_arch):
    model = PartialNet(tiny_arch, out_indices=out_indices, layer_scale_init_value=0.1)
    model.switch_to_deploy()
    assert sum(isinstance(module, _BatchNorm) for module in model.modules()) == norms
    names = dict(model.named_parameters())
    assert not any('layer_scale' in name or 'logit_conv' in name for name in names)
    assert names['stages.0.0.mlp.conv2.weight'].shape == (17, 32, 1, 1)
    assert names['stages.0.0.spatial_attention.shift'].shape == (1, 8, 1, 1)
    assert set(names) == set(dict(PartialNet(tiny_arch, out_indices=out_indices, deploy=True).named_parameters()))


def test_second_switch_does_nothing(tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, out_indices=ALL))
    model.switch_to_deploy()
    modules = dict(model.named_modules())
    weights = copy.deepcopy(model.state_dict())
    model.switch_to_deploy()
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    deployed = PartialNet(tiny_arch, deploy=True)
    weights = copy.deepcopy(deployed.state_dict())
    deployed.switch_to_deploy()
    assert all(torch.equal(value, weights[name]) for name, value in deployed.state_dict().items())


def test_mode_after_the_switch(tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, drop_path_rate=0.5)).train()
    model.switch_to_deploy()
    assert not any(module.training for module in model.modules())
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)[0]
    assert model.train().training
    assert model.stages[3][0].drop_path.training
    assert model.eval()(x)[0].equal(expected)
    # Without stochastic depth, nothing is left that depends on the mode.
    still = PartialNet(tiny_arch, deploy=True)
    assert still.train()(x)[0].equal(still.eval()(x)[0])


def test_merged_form_gets_gradients(tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, out_indices=ALL))
    model.switch_to_deploy()
    sum((out * torch.randn_like(out)).sum() for out in model(torch.randn(2, 3, 96, 96))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad.abs().sum() > 0, name


def test_checkpoints_of_the_two_forms_do_not_mix(tiny_arch):
    merged = PartialNet(tiny_arch, deploy=True)
    with pytest.raises(RuntimeError, match='Missing key'):
        PartialNet(tiny_arch).load_state_dict(merged.state_dict())
    with pytest.raises(RuntimeError, match='Missing key'):
        merged.load_state_dict(PartialNet(tiny_arch).state_dict())


@pytest.mark.parametrize('norm_cfg, error, fragments', [
    (dict(type='GN', num_groups=2), TypeError, ('the norm of Downsample', 'GroupNorm', 'allowed are BN and SyncBN')),
    (dict(type='SyncBN'), ValueError, ('the norm of Downsample', 'SyncBatchNorm', 'has seen no batch', 'load')),
    (dict(type='BN', track_running_stats=False), ValueError,
     ('the norm of Downsample', 'BatchNorm2d', 'track_running_stats=False')),
], ids=lambda value: value['type'] if isinstance(value, dict) else '')
def test_refusals(norm_cfg, error, fragments, tiny_arch):
    model = PartialNet(tiny_arch, norm_cfg=norm_cfg).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)[0]
    with pytest.raises(error) as raised:
        model.switch_to_deploy()
    for fragment in fragments:
        assert fragment in str(raised.value)
    assert torch.equal(model(x)[0], expected)


def test_sync_bn_with_statistics_merges(tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch, norm_cfg=dict(type='SyncBN'))).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.num_batches_tracked.fill_(1)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        model.switch_to_deploy()
        assert relative_error(model(x), expected) < 1e-5


def test_keeps_dtype_and_grows_no_dependence_on_the_batch(tiny_arch, randomize_norms):
    model = randomize_norms(PartialNet(tiny_arch)).double().eval()
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)[0]
        model.switch_to_deploy()
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        out = model(x)[0]
        assert (out - expected).abs().max() < 1e-12 * expected.abs().max()
        torch.testing.assert_close(model(x[1:2])[0], out[1:2])
