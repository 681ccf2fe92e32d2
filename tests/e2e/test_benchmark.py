# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The race against the peers: its table, its file, its picture, and what it refuses before anything is timed."""
import csv
import re
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch

from tests.helpers.tool_scripts import load_tool, run_main

TOOL = 'tools/analysis_tools/benchmark.py'
HELPERS = ('paper_tables', 'benchmark_paper', 'benchmark_picture', 'benchmark_modes')
SMALL = ('--size', '64', '--rounds', '2', '--turn', '0', '--device', 'cpu')


class Result(NamedTuple):
    """What a run left: exit status, the two tables as lists of cells, and what it wrote to stderr."""

    status: int
    modes: list[list[str]]
    best: list[list[str]]
    out: str
    err: str


@pytest.fixture
def helpers(monkeypatch):
    """The modules beside the tool, which Python finds for a script that it starts."""
    pytest.importorskip('timm')
    pytest.importorskip('mmpretrain')
    modules = {}
    for name in HELPERS:
        modules[name] = load_tool(f'tools/analysis_tools/{name}.py')
        monkeypatch.setitem(sys.modules, name, modules[name])
    return modules


@pytest.fixture
def benchmark(monkeypatch, capsys, helpers) -> Iterator[Callable[..., Result]]:
    def run(*options: object, **replaced: object) -> Result:
        status = run_main(monkeypatch, TOOL, *options, **replaced)
        out, err = capsys.readouterr()
        tables = [[[cell.strip() for cell in line.strip('|').split('|')] for line in part.splitlines()
                   if line.startswith('|') and not line.startswith('|---')] for part in out.split('\n\n')]
        tables = [table for table in tables if table]
        return Result(status, *(tables or [[], []]), out, err)

    threads, tuned = torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield run
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = tuned


def test_table_file_and_ratios(benchmark, tmp_path):
    path = tmp_path / 'figures.csv'
    result = benchmark('partialnet_t0', 'fasternet_t0', '--peers', 'mobilenetv2_100', '--batch', '2', '--csv', path,
                       *SMALL)
    assert result.status == 0, result.err
    networks = ['partialnet_t0', 'fasternet_t0', 'mobilenetv2_100']
    rows = result.modes[1:]
    assert [row[:3] for row in rows] == [[name, '2 x 64 x 64', mode] for mode in ('eager', 'channels_last')
                                         for name in networks]
    assert [row[-1] for row in rows] == ['61, 0', '17, 0', '52, 0'] * 2
    assert [row[5] for row in rows] == ['fasternet_t0', '', ''] * 2
    assert result.out.startswith(load_tool('partialnet_mm/utils/machine.py').describe_machine('cpu'))
    assert '1 thread, torch' in result.out

    with path.open() as file:
        figures = list(csv.DictReader(file))
    assert [(row['network'], row['mode']) for row in figures] == [(row[0], row[2]) for row in rows]
    by_key = {(row['network'], row['mode']): row for row in figures}
    for row, printed in zip(figures, rows):
        ms, low, high = (float(row[key]) for key in ('ms', 'ms_low', 'ms_high'))
        assert 0 < low <= ms <= high
        assert float(row['images_per_second']) == pytest.approx(2e3 / ms)
        assert printed[3] == f'{ms:.2f} ({low:.2f}-{high:.2f})'
        assert float(printed[4]) == pytest.approx(2e3 / ms, abs=.06)
        # the paper's accuracy is not that of these small images
        assert (row['height'], row['width'], row['batch'], row['amp']) == ('64', '64', '2', 'float32')
        assert row['paper_top1'] == ''
    mine, peer = (by_key[name, 'eager'] for name in networks[:2])
    assert float(mine['ratio_low']) <= float(mine['ratio']) <= float(mine['ratio_high'])
    # of two rounds, medians and ratios of medians are near
    assert float(mine['ms_low']) / float(peer['ms_high']) <= float(mine['ratio']) <= (
        float(mine['ms_high']) / float(peer['ms_low']))
    assert peer['reference'] == peer['ratio'] == ''

    for name, cells in zip(networks, result.best[1:]):
        fastest = min(('eager', 'channels_last'), key=lambda mode: float(by_key[name, mode]['ms']))
        assert cells[:2] == [name, 'contiguous' if fastest == 'eager' else fastest]
        assert cells[2] == f'{float(by_key[name, fastest]["ms"]):.2f}'
    assert [cells[4] for cells in result.best[1:]] == ['', '', '']  # nor the paper's latency


def test_ratios_are_of_rounds_and_best_formats(benchmark, helpers, monkeypatch):
    """Seconds of two rounds are given; all that is printed follows from them."""
    seconds = {('partialnet_t0', 'eager'): [.004, .006], ('fasternet_t0', 'eager'): [.008, .003],
               ('partialnet_t0', 'channels_last'): [.010, .020], ('fasternet_t0', 'channels_last'): [.002, .004]}
    result = benchmark('partialnet_t0', 'fasternet_t0', '--rounds', '2', '--device', 'cpu',
                       measure=lambda networks, args: seconds)
    assert [row[3] for row in result.modes[1:]] == [
        '5.00 (4.00-6.00)', '5.50 (3.00-8.00)', '15.00 (10.00-20.00)', '3.00 (2.00-4.00)']
    assert [row[6] for row in result.modes[1:]] == ['1.250 (0.500-2.000)', '', '5.000 (5.000-5.000)', '']
    assert result.best[1:] == [['partialnet_t0', 'contiguous', '5.00', '1.750 (1.500-2.000)', '1.16'],
                               ['fasternet_t0', 'channels_last', '3.00', '', '']]


def test_one_reference_for_all(benchmark):
    result = benchmark('fasternet_t0', 'mobilenetv2_100', 'partialnet_t0-appendix', '--reference', 'mobilenetv2_100',
                       '--modes', 'eager', '--amp', 'bf16', *SMALL)
    assert [row[5] for row in result.modes[1:]] == ['mobilenetv2_100', '', 'mobilenetv2_100']
    assert ', bf16, 2 rounds in turns' in result.out


def test_a_turn_has_many_passes_and_counts_as_one(benchmark):
    calls = []
    result = benchmark('mobilenetv2_100', '--size', '64', '--rounds', '2', '--turn', '9', '--modes', 'eager',
                       '--device', 'cpu', passes_in=lambda forward, seconds: 3,
                       prepare=lambda *given: lambda: calls.append(given[2]))
    assert calls == ['eager'] * 9  # a turn that does not count, and two that do
    assert result.status == 0 and float(result.modes[1][4]) > 1000


def test_picture(benchmark, tmp_path, monkeypatch, helpers):
    drawn = []
    draw = helpers['benchmark_picture'].draw
    monkeypatch.setattr(helpers['benchmark_picture'], 'draw', lambda *given: (drawn.append(given), draw(*given)))
    path = tmp_path / 'race.png'
    result = benchmark('partialnet_t0', 'mobilevitv2_050', 'ghostnet_100', '--size', 'paper', '--rounds', '1',
                       '--modes', 'channels_last', '--picture', path, '--turn', '0', '--device', 'cpu')
    assert result.status == 0, result.err
    assert path.read_bytes().startswith(b'\x89PNG')
    (points, label, title, _), = drawn
    # GhostNet x1.0 is in none of the paper's tables
    assert [(point.name, point.top1) for point in points] == [('PartialNet-T0', 73.9), ('MobileViTv2-0.5', 70.2)]
    assert [f'{point.measured:.2f}' for point in points] == [row[2] for row in result.best[1:3]]
    assert label == 'latency of one image (ms)' and '1 thread, torch' in title
    assert [row[1] for row in result.modes[1:]] == ['1 x 224 x 224', '1 x 256 x 256', '1 x 224 x 224']


@pytest.mark.parametrize('name, expected', [
    ('PartialNet-T0', 'PartialNet'), ('MobileViTv2-0.5', 'MobileViTv2'), ('MobileViT-XXS', 'MobileViT'),
    ('ShuffleNetV2 x1.5', 'ShuffleNetV2'), ('MobileNetV2', 'MobileNetV2'), ('ResNet-50', 'ResNet')])
def test_families_of_the_picture(helpers, name, expected):
    assert helpers['benchmark_picture'].family(name) == expected


def test_accuracies_are_of_the_papers_networks(helpers):
    names = {figure.name for figure in helpers['paper_tables'].FIGURES if figure.table in ('1', '10')}
    paper = helpers['benchmark_paper']
    assert set(paper.TOP1) == names
    rows = paper.printed_rows()
    assert paper.printed_for('efficientvit_b1', (192, 192)).top1 == 77.7 and len(rows['efficientvit_b1']) == 2
    assert paper.printed_for('partialnet_s', (224, 224)) == ('PartialNet-S', 82.1, 72.5, (224, 224))
    assert paper.printed_for('efficientnet_b4', (224, 224)) is None
    tool = load_tool(TOOL)
    for name in (*tool.NETWORKS, *rows, *tool.MORE_PEERS):
        tool.check_name(name)  # raises where a library does not have it


def test_what_does_not_compile_costs_nothing_else(benchmark, helpers):
    prepare = helpers['benchmark_modes'].prepare

    def fail_on_one(model, images, mode, amp):
        if 'FasterNet' in type(model).__name__:
            raise RuntimeError('no [such] kernel')
        return prepare(model, images, mode, amp)

    options = ('--modes', 'eager', *SMALL)
    result = benchmark('partialnet_t0', 'fasternet_t0', *options, prepare=fail_on_one)
    assert result.status == 0
    assert 'fasternet_t0 is left out of eager: RuntimeError: no [such] kernel' in ' '.join(result.err.split())
    assert [row[0] for row in result.modes[1:]] == ['partialnet_t0'] and result.modes[1][5:7] == ['', '']
    assert result.best[1][3] == '' and result.best[2][:4] == ['fasternet_t0', '', '', '']
    none = benchmark('fasternet_t0', *options, prepare=fail_on_one)
    assert none.status == 1 and 'no network could be run in any of the modes' in none.err


@pytest.mark.parametrize('options, message', [
    (('resnet5000', ), "there is no network 'resnet5000' in timm; near it are"),
    (('--peers', 'keras:x'), "network 'keras:x' is of the library 'keras'"),
    (('--rounds', '0'), '--rounds must be at least 1, got 0'),
    (('--turn', '-1'), '--turn must not be negative, got -1.0'),
    (('--threads', '0'), '--threads must be at least 1, got 0'),
    (('--size', '224', 'x'), "--size takes one or two positive numbers, or 'paper', got 224 x"),
    (('--size', '0'), "--size takes one or two positive numbers, or 'paper', got 0"),
    (('--modes', 'fast'), "invalid choice: 'fast'"),
    (('--csv', 'nowhere/a.csv'), "--csv: the folder of 'nowhere/a.csv' does not exist"),
    (('--picture', 'nowhere/a.png'), "--picture: the folder of 'nowhere/a.png' does not exist"),
    (('--picture', 'a.jpg'), "--picture must end in .png, .svg, .pdf, got 'a.jpg'"),
    (('fasternet_t0', '--reference', 'resnet50'), "--reference 'resnet50' is not one of the networks: fasternet_t0"),
    (('swin_tiny_patch4_window7_224', '--size', '64'),
     "'swin_tiny_patch4_window7_224' does not run on images of 64 x 64"),
    (('mobilenetv2_100', '--size', '64', '--picture', 'a.png'), 'the paper prints no accuracy of these networks'),
    pytest.param(('--device', 'cuda'), '--device cuda: torch sees no GPU',
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is one')),
    pytest.param(('--amp', 'fp16'), 'has no autocast to fp16 on cpu: ',
                 marks=pytest.mark.skipif(int(torch.__version__.split('.')[1]) >= 3, reason='newer torch has it')),
])
def test_wrong_input_is_found_before_anything_is_timed(benchmark, options, message):
    def refuse(*given):
        pytest.fail('was timed')

    device = () if '--device' in options else ('--device', 'cpu')
    result = benchmark(*options, *device, time_in_turns=refuse, prepare=refuse)
    assert result.status == 2
    assert message in re.sub(r'\s+', ' ', result.err)


def test_compiling_needs_a_compiler(benchmark, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    result = benchmark('--modes', 'compile', '--device', 'cpu')
    assert result.status == 2 and "the C++ compiler 'no-such-compiler', which is not on the PATH" in result.err


@pytest.mark.slow
def test_compiled_networks_compute_the_same(benchmark, helpers, monkeypatch):
    outputs = {}
    prepare = helpers['benchmark_modes'].prepare

    def note(model, images, mode, amp):
        forward = prepare(model, images, mode, amp)
        outputs.setdefault(type(model).__name__, []).append(forward())
        return forward

    modes = ('eager', 'channels_last', 'compile', 'compile_channels_last')
    result = benchmark('partialnet_t0', 'fasternet_t0', '--modes', *modes, *SMALL, prepare=note)
    assert result.status == 0 and 'left out' not in result.err
    assert [row[2] for row in result.modes[1::2]] == list(modes)
    for eager, *others in outputs.values():
        assert len(others) == 3
        for other in others:
            torch.testing.assert_close(other, eager, rtol=1e-3, atol=1e-3 * float(eager.abs().max()))
    assert len(result.best[0]) == 8 and float(result.best[1][6].split()[0]) > 0

