# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from partialnet_mm.analysis import measure


def test_rounds_alternate_and_the_warm_up_does_not_count():
    calls = []
    times = measure.time_in_rounds(dict(a=lambda: calls.append('a'), b=lambda: calls.append('b')), rounds=3, warmup=2)
    assert calls == ['a', 'b'] * 5
    assert {name: len(values) for name, values in times.items()} == dict(a=3, b=3)


def test_times_are_those_of_the_calls():
    times = measure.time_in_rounds(dict(short=lambda: None, long=lambda: time.sleep(0.02)), rounds=2)
    assert min(times['long']) >= 0.02 > max(times['short'])


@pytest.mark.parametrize('mine, low, high', [([2., 4., 9.], 2, 9), ([1., 2., 3., 4., 5.], 1.5, 4.5)])
def test_ratios_of_the_rounds(mine, low, high):
    found = measure.ratio(dict(mine=mine, other=[1.] * len(mine)), 'mine', 'other')
    assert found == (sorted(mine)[len(mine) // 2], low, high)
    assert found.text(1) == f'{found.median:.1f} ({low:.1f}-{high:.1f})'


def test_a_slow_round_counts_as_one():
    assert measure.ratio(dict(mine=[1., 1., 1.], other=[2., 2., 200.]), 'mine', 'other').median == 0.5


@pytest.mark.parametrize('number, text', [(1, ', 1 thread, '), (2, ', 2 threads, ')])
def test_the_machine_has_threads_and_a_version(number, text):
    torch.set_num_threads(number)
    description = measure.describe_machine('cpu')
    assert description.endswith(f'{text}torch {torch.__version__}')
    assert description.index(text) > 0


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_the_machine_has_the_name_of_its_processor(monkeypatch):
    monkeypatch.setattr(Path, 'read_text', lambda path: 'processor\t: 0\nmodel name\t: Some CPU: 3000\n')
    assert measure.describe_machine('cpu').startswith('Some CPU: 3000, ')
    monkeypatch.setattr(Path, 'is_file', lambda path: False)
    assert not measure.describe_machine('cpu').startswith(('Some', ','))


def test_kept_memory_is_that_of_the_results_that_a_gradient_needs():
    x = torch.randn(2, 3, 5, 7, requires_grad=True)
    one = 4 * x.numel()
    assert measure.kept_memory(nn.Sequential(nn.Sigmoid(), nn.Sigmoid()), x) == 2 * one
    assert measure.kept_memory(nn.Sequential(nn.Sigmoid(), nn.Flatten(), nn.ReLU(inplace=True)), x) == one
    assert measure.kept_memory(nn.Conv2d(3, 3, 1), x) == 0  # its input and weight exist without it
    assert measure.kept_memory(nn.Sequential(nn.Sigmoid(), nn.Conv2d(3, 8, 1)), x) == one


def test_tables_are_markdown():
    assert measure.markdown_table(['a', 'b'], [[1, None], ['x', 'y']]) == '| a | b |\n|---|---|\n| 1 |  |\n| x | y |'
