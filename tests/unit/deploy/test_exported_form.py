# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The form of merged blocks that exports write."""
import pytest
import torch
from torch import nn

from partialnet_mm import PartialNet
from partialnet_mm.deploy.exported_form import ExportedBlock, exported_form
from partialnet_mm.models.merged_block import MergedBlock
from tests.helpers.networks import ALL, relative_error

ARCH = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type='GELU'))


def merged(**options):
    backbone = PartialNet(ARCH, out_indices=ALL, **options)
    with torch.no_grad():
        for value in (*backbone.parameters(), *backbone.buffers()):
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.2)
    backbone.switch_to_deploy()
    return backbone.double()


@pytest.mark.parametrize('options', [
    dict(), dict(gate='srm'), dict(gate='se'), dict(gate='cbam', layer_scale_init_value=0.5),
    dict(spatial_attention='full'), dict(spatial_attention='none', token_mixers='partial_conv'),
    dict(token_mixers=('full_ch', 'full_ch', 'full_ch', 'full_sf')), dict(split_ratio=1.)])
def test_it_computes_what_the_merged_form_does(options):
    backbone = merged(**options)
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    network = exported_form(nn.Sequential(backbone))
    assert sum(isinstance(module, ExportedBlock) for module in network.modules()) == 4
    assert sum(isinstance(module, MergedBlock) for module in backbone.modules()) == 4
    with torch.no_grad():
        assert relative_error(network(images), backbone(images)) < 1e-12


def test_without_merged_blocks_it_is_the_network_itself():
    backbone = PartialNet(ARCH)
    assert exported_form(backbone) is backbone
