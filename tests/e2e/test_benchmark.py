# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The race against the peers: its table, its file, its picture, and what it refuses before anything is timed."""
import csv
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import pytest
import torch
from matplotlib.figure import Figure

from partialnet_mm.analysis.measure import describe_machine
from tests.helpers.libraries import ROOT
from tests.helpers.tiny_models import write_config
from tests.helpers.tool_scripts import run_main

TOOL = 'tools/analysis_tools/benchmark.py'
SMALL = ('--size', '64', '--rounds', '2', '--turn', '0', '--device', 'cpu')


class Result(NamedTuple):
    """What a run left: exit status, the two tables as lists of cells, and what it wrote to stderr."""

    status: int
    modes: list[list[str]]
    best: list[list[str]]
    out: str
    err: str


@pytest.fixture
def benchmark(monkeypatch, capsys) -> Callable[..., Result]:
    pytest.importorskip('timm')
    pytest.importorskip('mmpretrain')

    def run(*options: object, own_process: bool = False) -> Result:
        if own_process:
            done = subprocess.run([sys.executable, TOOL, *map(str, options)], cwd=ROOT, capture_output=True, text=True)
            status, out, err = done.returncode, done.stdout, done.stderr
        else:
            status = run_main(monkeypatch, TOOL, *options)
            out, err = capsys.readouterr()
        tables = [[[cell.strip() for cell in line.strip('|').split('|')] for line in block.splitlines()
                   if line.startswith('|') and not line.startswith('|---')] for block in out.split('\n\n')]
        tables = [table for table in tables if table]
        return Result(status, *(tables or [[], []]), out, err)

    return run


@pytest.fixture
def curves(monkeypatch) -> list[dict[str, list[tuple[float, float]]]]:
    """The points of each curve of the pictures that are saved, by its entry in the legend."""
    saved = []
    save = Figure.savefig

    def savefig(figure, path, **options):
        saved.append({line.get_label(): list(zip(*line.get_data())) for line in figure.axes[0].lines})
        save(figure, path, **options)

    monkeypatch.setattr(Figure, 'savefig', savefig)
    return saved


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
    assert result.out.startswith(describe_machine('cpu'))
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


def test_ratios_are_of_rounds_and_best_formats(benchmark, tmp_path):
    """All that is printed of the faster formats follows from the file; at 224 the paper's ratio is printed beside."""
    path = tmp_path / 'figures.csv'
    result = benchmark('partialnet_t0', 'fasternet_t0', '--rounds', '1', '--turn', '0', '--device', 'cpu', '--csv',
                       path)
    with path.open() as file:
        ms = {(row['network'], row['mode']): float(row['ms']) for row in csv.DictReader(file)}
    mine, peer = (min(ms[name, mode] for mode in ('eager', 'channels_last'))
                  for name in ('partialnet_t0', 'fasternet_t0'))
    row, other = result.best[1:]
    assert row[0] == 'partialnet_t0' and row[2] == f'{mine:.2f}'
    assert row[3] == f'{mine / peer:.3f} ({mine / peer:.3f}-{mine / peer:.3f})' and row[4] == '1.16'
    assert other[0] == 'fasternet_t0' and other[3:] == ['', '']


def test_one_reference_for_all(benchmark):
    result = benchmark('fasternet_t0', 'mobilenetv2_100', 'partialnet_t0-appendix', '--reference', 'mobilenetv2_100',
                       '--modes', 'eager', '--amp', 'bf16', *SMALL)
    assert [row[5] for row in result.modes[1:]] == ['mobilenetv2_100', '', 'mobilenetv2_100']
    assert ', bf16, 2 alternating rounds' in result.out


@pytest.mark.parametrize('runtime, options', [('onnxruntime', ()), ('onnxruntime', ('--int8', )), ('openvino', ())])
def test_other_runtimes(benchmark, tmp_path, runtime, options):
    pytest.importorskip(runtime)
    mode, numbers = (f'{runtime} INT8', 'INT8') if options else (runtime, 'float32')
    path = tmp_path / 'figures.csv'
    result = benchmark('partialnet_t0', 'mobilenetv2_100', '--reference', 'mobilenetv2_100', '--runtime', runtime,
                       '--csv', path, *options, *SMALL,
                       own_process=runtime == 'openvino')  # where it was loaded, a later fork may crash
    assert result.status == 0 and 'left out' not in result.err
    assert [row[2] for row in result.modes[1:]] == [mode] * 2 and result.modes[1][5] == 'mobilenetv2_100'
    assert float(result.modes[1][4]) > 0 and result.best[0][1] == f'{mode}: format'
    with path.open() as file:
        machines = {row['machine'] for row in csv.DictReader(file)}
    assert machines == {f'{describe_machine("cpu")}, {runtime} {version(runtime)}'}
    assert f', {runtime} {version(runtime)}, {numbers}, 2 alternating rounds' in result.out


def test_a_turn_has_as_many_passes_as_it_is_long(benchmark):
    """One round warms up, two count, one second each; printed is the speed of one pass."""
    start = time.perf_counter()
    result = benchmark('mobilenetv2_100', '--size', '64', '--rounds', '2', '--turn', '1', '--modes', 'eager',
                       '--device', 'cpu')
    assert time.perf_counter() - start > 1.5
    assert result.status == 0 and float(result.modes[1][4]) > 2  # images per second of one pass, not of one turn


def test_a_whole_detector(benchmark, tmp_path, tiny_arch):
    config = write_config('detector', tmp_path / 'mine.py', tiny_arch)
    result = benchmark(config, '--modes', 'eager', *SMALL)
    assert result.status == 0, result.err
    assert result.modes[1][:3] == [str(config), '1 x 64 x 64', 'eager'] and result.modes[1][-1] == '27, 4'


def test_pictures(benchmark, tmp_path, curves):
    speed, flops = tmp_path / 'race.png', tmp_path / 'flops.svg'
    result = benchmark('partialnet_t0', 'mobilevitv2_050', 'ghostnet_100', '--size', 'paper', '--rounds', '1',
                       '--modes', 'channels_last', '--picture', speed, '--flops-picture', flops, '--turn', '0',
                       '--device', 'cpu')
    assert result.status == 0, result.err
    assert speed.read_bytes().startswith(b'\x89PNG') and '<svg' in flops.read_text()
    # GhostNet x1.0 is in none of the paper's tables.
    for drawn in curves:
        assert {name: [accuracy for _, accuracy in points] for name, points in drawn.items()} == {
            'PartialNet: T0': [73.9], 'MobileViTv2: 0.5': [70.2]}
    by_speed, by_flops = ([drawn[name][0][0] for name in ('PartialNet: T0', 'MobileViTv2: 0.5')] for drawn in curves)
    assert [f'{value:.2f}' for value in by_speed] == [row[2] for row in result.best[1:3]]
    assert by_flops == pytest.approx([0.250, 0.465], abs=1e-3)
    assert [row[1] for row in result.modes[1:]] == ['1 x 224 x 224', '1 x 256 x 256', '1 x 224 x 224']


def test_what_does_not_compile_costs_nothing_else(benchmark, monkeypatch):
    def refuse(model, **options):
        def run(images):
            if 'FasterNet' in type(model).__name__:
                raise RuntimeError('no [such] kernel')
            return model(images)
        return run

    monkeypatch.setattr(torch, 'compile', refuse)
    monkeypatch.setenv('CXX', sys.executable)  # any program that exists
    options = ('--modes', 'compile', *SMALL)
    result = benchmark('partialnet_t0', 'fasternet_t0', *options)
    assert result.status == 0
    assert 'fasternet_t0 is left out of compile: RuntimeError: no [such] kernel' in ' '.join(result.err.split())
    assert [row[0] for row in result.modes[1:]] == ['partialnet_t0'] and result.modes[1][5:7] == ['', '']
    assert result.best[1][3] == '' and result.best[2][:4] == ['fasternet_t0', '', '', '']
    none = benchmark('fasternet_t0', *options)
    assert none.status == 1 and 'no network could be run in any of the modes' in none.err


@pytest.mark.parametrize('options, message', [
    (('resnet5000', ), "there is no network 'resnet5000' in timm; near it are"),
    (('--peers', 'keras:x'), "network 'keras:x' is of the library 'keras'"),
    (('--rounds', '0'), '--rounds: must be a number of at least 1, got 0'),
    (('--turn', '-1'), '--turn must not be negative, got -1.0'),
    (('--threads', '0'), '--threads: must be a number of at least 1, got 0'),
    (('--size', '224', 'x'), "--size takes one or two positive numbers, or 'paper', got 224 x"),
    (('--size', '0'), "--size takes one or two positive numbers, or 'paper', got 0"),
    (('--modes', 'fast'), "invalid choice: 'fast'"),
    (('--runtime', 'tensorrt'), "invalid choice: 'tensorrt'"),
    (('--runtime', 'onnxruntime', '--modes', 'channels_last'),
     '--modes channels_last needs --runtime torch: onnxruntime chooses the memory format'),
    (('--runtime', 'onnxruntime', '--amp', 'bf16'), '--amp needs --runtime torch'),
    (('--runtime', 'onnxruntime', '--tf32'), '--tf32 needs --runtime torch'),
    (('--int8', ), '--int8 needs --runtime onnxruntime, got torch'),
    (('--csv', 'nowhere/a.csv'), "argument --csv: the folder of 'nowhere/a.csv' does not exist"),
    (('--flops-picture', 'nowhere/a.png'), "argument --flops-picture: the folder of 'nowhere/a.png' does not exist"),
    (('--picture', 'a.mp3'), "argument --picture: 'a.mp3' must end in one of ."),
    (('fasternet_t0', '--reference', 'resnet50'), "--reference 'resnet50' is not one of the networks: fasternet_t0"),
    (('swin_tiny_patch4_window7_224', '--size', '64'),
     "'swin_tiny_patch4_window7_224' does not run on images of 64 x 64"),
    (('mobilenetv2_100', '--size', '64', '--picture', 'a.png'), 'the paper prints no accuracy of these networks'),
    pytest.param(('--device', 'cuda'), 'torch sees no GPU',
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is one')),
    pytest.param(('--amp', 'fp16'), 'has no autocast to fp16 on cpu: ',
                 marks=pytest.mark.skipif(int(torch.__version__.split('.')[1]) >= 3, reason='newer torch has it')),
])
def test_wrong_input_is_found_before_anything_is_timed(benchmark, options, message):
    device = () if '--device' in options else ('--device', 'cpu')
    result = benchmark(*options, *device)
    assert result.status == 2 and result.out == '' and 'preparing' not in result.err
    assert message in re.sub(r'\s+', ' ', result.err)


def test_a_missing_runtime_is_named(benchmark, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, find=importlib.util.find_spec: (
        None if name == 'openvino' else find(name)))
    result = benchmark('--runtime', 'openvino', '--device', 'cpu')
    assert result.status == 2 and '--runtime openvino: openvino must be installed: pip install openvino' in result.err


def test_compiling_needs_a_compiler(benchmark, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    result = benchmark('--modes', 'compile', '--device', 'cpu')
    assert result.status == 2 and "the C++ compiler 'no-such-compiler', which is not on the PATH" in result.err


@pytest.mark.slow
def test_compiled_networks_compute_the_same(benchmark, monkeypatch):
    compile_network = torch.compile

    def compare(model, **options):
        run = compile_network(model, **options)

        def forward(images):
            output, expected = run(images), model(images)
            torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
            return output

        return forward

    monkeypatch.setattr(torch, 'compile', compare)  # a network that fails is left out
    modes = ('eager', 'channels_last', 'compile', 'compile_channels_last', 'compile_exported')
    result = benchmark('partialnet_t0', 'fasternet_t0', '--modes', *modes, *SMALL)
    assert result.status == 0 and 'left out' not in result.err
    assert [row[2] for row in result.modes[1::2]] == list(modes)
    assert len(result.best[0]) == 8 and float(result.best[1][6].split()[0]) > 0
