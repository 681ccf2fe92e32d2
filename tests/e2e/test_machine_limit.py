# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""How far networks are from the machine's limit, by the command that prints it."""
import pytest
import torch
from mmengine.registry import DefaultScope
from torch import nn

from partialnet_mm.analysis.flops import count_multiply_adds
from partialnet_mm.analysis.peers import build_network, merge_network
from tests.helpers.tool_scripts import load_tool, run_main

TOOL = 'tools/analysis_tools/machine_limit.py'


def test_products_have_the_shapes_of_the_layers():
    layers = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1),
                           nn.Flatten(), nn.Linear(8, 5)).eval()
    products = load_tool(TOOL).find_products(layers, torch.randn(1, 3, 16, 24))
    # The last one is of a vector.
    assert [(weight.shape, x.shape) for weight, x in products] == [((8, 48), (48, 24)), ((8, 72), (72, 24))]


def test_products_are_the_networks_multiply_adds():
    with DefaultScope.overwrite_default_scope('mmengine'):
        model = build_network('partialnet_t0')
    merge_network(model, (64, 64))
    products = load_tool(TOOL).find_products(model, torch.randn(1, 3, 64, 64))
    counted = count_multiply_adds(model, (1, 3, 64, 64))
    # Left out are gates, the classifier and attention's own products.
    assert 0.85 * counted < sum(weight.numel() * x.shape[1] for weight, x in products) < counted


def test_prints_both_tables(monkeypatch, capsys):
    pytest.importorskip('timm')
    threads = torch.get_num_threads()
    try:
        assert run_main(monkeypatch, TOOL, 'partialnet_t0', 'fasternet_t0', '--size', '64', '--rounds', '2') == 0
    finally:
        torch.set_num_threads(threads)
    rows = [line.strip('| ').split(' | ') for line in capsys.readouterr().out.splitlines() if line.startswith('| ')]
    assert [row[0] for row in rows] == ['network', 'partialnet_t0', 'fasternet_t0'] * 2
    for row in rows[1:3]:
        assert float(row[1]) > 0 and float(row[2]) > 0 and float(row[3]) > 0
    for row in rows[4:]:
        assert float(row[1].rstrip('%')) > 0


@pytest.mark.parametrize('options, message', [
    (['fasternet_x'], "there is no network 'fasternet_x' in timm"), (['--rounds', '0'], '--rounds must be positive')])
def test_says_what_is_wrong(monkeypatch, capsys, options, message):
    pytest.importorskip('timm')
    assert run_main(monkeypatch, TOOL, *options) == 2
    assert message in capsys.readouterr().err
