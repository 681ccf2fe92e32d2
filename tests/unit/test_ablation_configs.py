# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""configs/ablations: the sizes of the rows of the paper's tables, and the recipes that are compared."""
import pytest
import torch
from mmengine.config import Config

from partialnet_mm.analysis.flops import count_multiply_adds
from tests.helpers.libraries import ROOT, build_model

ABLATIONS = ROOT / 'configs' / 'ablations'
# Parameters (M) and multiply-adds (G) of the merged form. PartialNet's parameters were counted with the official
# modules and agree with the paper's tables; its multiply-adds are the paper's. The paper does not state the width of
# the depthwise row, so that tolerance is larger. FasterNet's are from its own paper.
SIZES = {
    'partialnet_t2_full_ch': (13.03, 1.04), 'partialnet_t2_full_sp': (12.65, 1.04),
    'partialnet_t2_full_sf': (14.49, 1.12), 'partialnet_t2_none': (9.41, 0.914), 'partialnet_t2_ch': (11.09, 0.917),
    'partialnet_t2_ch_sp': (11.47, 0.92), 'partialnet_t2_conv': (15.82, 2.12), 'partialnet_t2_srm': (12.165, 1.03),
    'partialnet_t2_se': (12.28, 1.04), 'partialnet_t2_depthwise': (15.8, 1.28), 'fasternet_t0': (3.9, 0.34),
    'fasternet_t1': (7.6, 0.85), 'fasternet_t2': (15.0, 1.91), 'fasternet_s': (31.1, 4.56), 'fasternet_m': (53.5, 8.74),
    'fasternet_l': (93.5, 15.52),
}


def test_every_config_has_its_sizes():
    assert {path.stem for path in ABLATIONS.glob('*_in1k.py')} == {f'{name}_in1k' for name in SIZES}


@pytest.mark.parametrize('name', SIZES)
def test_sizes(name):
    params, flops = SIZES[name]
    tolerance = 0.03 if 'depthwise' in name else 0.01
    with torch.device('meta'):  # counted without values
        model = build_model(Config.fromfile(ABLATIONS / f'{name}_in1k.py'), init=False)
    exact = name.startswith('partialnet') and 'depthwise' not in name
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, rel=1e-3 if exact else tolerance)
    model.backbone.switch_to_deploy()
    head = sum(p.numel() for p in model.head.parameters() if p.dim() > 1)
    counted = count_multiply_adds(model.backbone, (1, 3, 224, 224)) + head
    assert counted / 1e9 == pytest.approx(flops, rel=tolerance, abs=0.005)  # printed with two digits


@pytest.mark.parametrize('base, names', [
    ('cifar10/partialnet_t0_cifar10.py', ['cifar10/fasternet_t0_cifar10.py']),
    ('ablations/partialnet_t0_ch_sp_sf_cifar10.py', [f'ablations/partialnet_t0_{row}_cifar10.py'
                                                     for row in ('none', 'ch', 'ch_sp', 'full')]),
])
def test_one_recipe_for_all_that_are_compared(base, names):
    def recipe(name):
        cfg = Config.fromfile(ROOT / 'configs' / name).to_dict()
        cfg['model'].pop('backbone')
        cfg['model']['head'].pop('in_channels')
        return cfg

    for name in names:
        assert recipe(name) == recipe(base)


def test_rows_learned_on_cifar10_are_table_4():
    rows = {}
    for row in ('none', 'ch', 'ch_sp', 'ch_sp_sf'):
        backbone = Config.fromfile(ABLATIONS / f'partialnet_t0_{row}_cifar10.py').model.backbone
        rows[row] = (backbone.get('token_mixers'), backbone.get('spatial_attention'))
    assert rows == dict(none=('partial_conv', 'none'), ch=('pat_ch', 'none'), ch_sp=('pat_ch', None),
                        ch_sp_sf=(None, None))


def test_full_attentions_on_cifar10_are_table_3():
    backbone = Config.fromfile(ABLATIONS / 'partialnet_t0_full_cifar10.py').model.backbone
    assert list(backbone.token_mixers) == ['full_ch', 'full_ch', 'full_ch', 'full_sf']
    assert backbone.spatial_attention == 'full'
