# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""tools/analysis_tools/benchmark_training.py: times and peak memory of training steps."""
import os
import re
import subprocess
import sys

import pytest
import torch

from tests.helpers.libraries import ROOT
from tests.helpers.tiny_models import write_config
from tests.helpers.tool_scripts import run_main

TOOL = 'tools/analysis_tools/benchmark_training.py'
PRETRAIN = 'configs/pretrain/partialnet_t0_in1k.py'
COMMON = ('--rounds', '2', '--threads', str(torch.get_num_threads()), '--device', 'cpu')
SPREAD = r'([\d.]+) \(([\d.]+)-([\d.]+)\)'
on_linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='memory is read from /proc')
PROGRAM = '''
import torch
from partialnet_mm.analysis.measure import peak_memory

def work():
    held = torch.ones(16 * 2**20)      # 64 MiB at once
    del held
    torch.ones({second} * 2**18).sum()   # then so many MiB

torch.ones(64 * 2**20).sum()           # 256 MiB before, which must not count
print(peak_memory(work) / 2**20)
'''


@pytest.fixture
def rows(monkeypatch, capsys):
    """Runs the command; the rows of its table, and all that it prints."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))

    def run(*options):
        assert run_main(monkeypatch, TOOL, *options, *COMMON) == 0
        out = capsys.readouterr().out
        return [[cell.strip() for cell in line.split('|')[1:-1]] for line in out.splitlines()
                if line.startswith('| ')][1:], out

    return run


@pytest.fixture
def no_processes(monkeypatch):
    """Every process reports 3 MiB."""
    monkeypatch.setattr(subprocess, 'run', lambda command, **_: subprocess.CompletedProcess(command, 0, '3145728\n'))


def check_times(row, batch):
    low, high = map(float, re.search(SPREAD, row[1]).groups()[1:])
    assert 0 < low <= float(row[1].split()[0]) <= high
    assert float(row[1].split()[0]) * float(row[2]) == pytest.approx(batch, rel=0.1)


@on_linux
@pytest.mark.parametrize('second, expected', [(16, 64), (128, 128)])
def test_peak_is_the_most_at_any_time(second, expected):
    out = subprocess.run([sys.executable, '-c', PROGRAM.format(second=second)], capture_output=True, text=True,
                         check=True, cwd=ROOT, env=dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1', PATH=''))
    assert float(out.stdout) == pytest.approx(expected, abs=10)


@on_linux
def test_classifiers(rows):
    pytest.importorskip('timm')
    found, out = rows('classifiers', 'fasternet_t2', 'partialnet_t0', '--batch', '2', '--size', '64', '64')
    assert [row[0] for row in found] == ['fasternet_t2', 'partialnet_t0']
    for row in found:
        check_times(row, 2)
    assert found[1][3] == '1.00 (1.00-1.00)' and float(found[0][3].split()[0]) > 1
    # Weights, gradients, and AdamW's two moments: four times 4 bytes.
    for memory, params in zip((row[4] for row in found), (15., 4.3)):
        assert 16 * params / 1.05 < float(memory) < 22 * params + 40
    assert 'batch 2, 64 x 64' in out and 'arithmetic' not in out


def test_compiled_classifiers(rows, no_processes, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda model: compiled.append(type(model).__name__) or model)
    found, _ = rows('classifiers', 'partialnet_t0', '--compile', '--batch', '2', '--size', '32', '32')
    assert [row[0] for row in found] == ['partialnet_t0+compiled', 'partialnet_t0'] and len(compiled) == 1
    for row in found:
        check_times(row, 2)


def test_backbones_with_checkpointing_and_in_the_folded_form(rows, no_processes):
    pytest.importorskip('timm')
    found, _ = rows('backbones', 'partialnet_t0', 'fasternet_t0', '--with-cp', '--norm-act', '--folded',
                    '--size', '256', '256')
    assert [row[0] for row in found] == [
        *(f'partialnet_t0{suffix}' for suffix in ('+with_cp', '+norm_act', '+folded', '+plain', '')), 'fasternet_t0']
    for row in found:
        check_times(row, 1)
    with_cp, norm_act, folded, plain, default, _ = (float(row[5]) for row in found)
    assert with_cp < 0.3 * default and norm_act < 0.7 * default
    assert folded < plain


def test_detectors_and_the_hours_of_a_schedule(rows, no_processes, tmp_path, tiny_arch):
    """Times are measured; the rest is arithmetic that can be checked."""
    config = write_config('detector', tmp_path / 'config.py', tiny_arch)
    found, out = rows('detectors', config, '--with-cp', '--size', '64', '96', '--schedule', '117266', '12', '4')
    name = f'{tmp_path.name}/config'
    assert [row[0] for row in found] == [f'{name}+with_cp', name]
    for row in found:
        check_times(row, 2)
        assert row[4] == '3'
    assert '117266 images / (4 devices x 2) x 12 epochs = 175908 steps' in out
    seconds, hours = map(float, re.search(r'config: 175908 x ([\d.]+) s / 3600 = ([\d.]+) h on 4 dev', out).groups())
    assert hours == pytest.approx(175908 * seconds / 3600, abs=0.06 + 175908 * 0.0006 / 3600)


def test_resolutions_beside_a_fixed_one(rows):
    pytest.importorskip('mmpretrain')
    found, out = rows('resolutions', PRETRAIN, '--sizes', '32', '128', '--fixed', '64', '--batch', '2')
    assert [row[:2] for row in found] == [['32', '0.25'], ['128', '4.00'], ['drawn', '2.12'], ['fixed 64', '1.00']]
    low, high, drawn, fixed = (float(re.search(SPREAD, row[3]).group(1)) for row in found)
    assert low < high and fixed == 1 and drawn == pytest.approx((low + high) / 2, rel=0.2)
    assert '1281167 images / (8 devices x 2) x 300 epochs = 24021900 steps' in out


@pytest.mark.parametrize('options, message', [
    (('classifiers', 'resnet5000'), "there is no network 'resnet5000'"),
    (('backbones', 'partialnet_x'), "there is no network 'partialnet_x': allowed are partialnet_ARCH with ARCH one of"),
    (('classifiers', '--rounds', '0'), 'argument --rounds: must be a number of at least 1, got 0'),
    (('backbones', '--size', '0', '64'), 'argument --size: must be a number of at least 1, got 0'),
    (('detectors', 'nowhere.py'), "there is no config 'nowhere.py'"),
    (('detectors', PRETRAIN), "is not a config of mmdet: its default_scope is 'mmpretrain'"),
    (('detectors', PRETRAIN, '--schedule', '9', '9', '0'), '--schedule: must be a number of at least 1, got 0'),
    (('resolutions', 'no.py'), "config 'no.py' does not exist"),
    (('resolutions', PRETRAIN, '--sizes', '100'), 'multiples of 32, from 32 up, got 100'),
    pytest.param(('classifiers', '--device', 'cuda'), 'torch sees no GPU',
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is one')),
])
def test_wrong_options(options, message, monkeypatch, capsys):
    pytest.importorskip('timm')
    monkeypatch.chdir(ROOT)
    assert run_main(monkeypatch, TOOL, *options) == 2
    assert message in ' '.join(capsys.readouterr().err.split())


@pytest.mark.slow
@on_linux
def test_memory_of_the_activations(rows):
    pytest.importorskip('timm')
    one, two = (rows('backbones', 'resnet50', '--size', '512', '512', '--batch', str(batch))[0][0] for batch in (1, 2))
    # 23.5 M weights and as many gradients do not grow with the batch; what is kept for the backward pass does.
    kept = float(one[5])
    assert float(two[5]) == pytest.approx(2 * kept, rel=0.02)
    assert float(one[4]) > kept + 2 * 90
    assert float(two[4]) - float(one[4]) == pytest.approx(kept, rel=0.3)
