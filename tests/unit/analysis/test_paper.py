# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The paper's figures, as they are read."""
import pytest

from partialnet_mm.analysis.paper import read_figures
from partialnet_mm.analysis.peers import check_name
from tests.helpers.libraries import ROOT

FIGURES = read_figures(ROOT / 'tools' / 'paper' / 'figures.csv')


def test_rows_have_the_papers_values():
    rows = {(figure.table, figure.name): figure for figure in FIGURES}
    assert len(rows) == len(FIGURES) == 86
    small = rows['1', 'PartialNet-S']
    assert (small.params, small.flops, small.latency, small.top1) == ('29.0', '2.71', 72.5, 82.1)
    assert small.size == (224, 224) and small.counted_params is None and small.reason == ''
    detector = rows['2', 'Mask R-CNN, PartialNet-M']
    assert (detector.box_ap, detector.box_ap50, detector.box_ap75) == (44.3, 65.8, 48.5)
    assert (detector.mask_ap, detector.mask_ap50, detector.mask_ap75) == (40.6, 63.3, 43.7)
    assert detector.size == (800, 1280)
    # Every row of Table 11, which is Table 2 again.
    assert sum(figure.mask_ap75 is not None for figure in FIGURES) == 15
    assert (detector.counted_params, detector.counted_flops, detector.reason) == (79.18, 314, 'misprint')
    assert [rows['5', name].throughput for name in ('ResNet-50', 'ResNet-50, PATConv')] == [1258, 2832]
    # Every classifier of Tables 1 and 10 has an accuracy and a latency.
    assert all(figure.top1 and figure.latency for figure in FIGURES if figure.table in ('1', '10'))
    assert rows['10', 'EfficientViT-B1-192'].top1 == 77.7 and rows['10', 'EfficientViT-B1-192'].size == (192, 192)


@pytest.mark.parametrize('library', ['timm', 'torchvision', 'mmdet', 'mmpretrain', ''])
def test_every_network_exists(library):
    if library:
        pytest.importorskip(library)
    names = {figure.network for figure in FIGURES if figure.network.partition(':')[0] == library
             or (not library and ':' not in figure.network)}
    assert names
    for name in names:
        check_name(name if library else str(ROOT / 'configs' / name))
