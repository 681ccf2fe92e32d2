# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What with_cp saves, by the tool that prints it."""
import os
import re
import runpy
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from torch import nn

from tests.helpers.libraries import ROOT, build_model

TOOL = ROOT / 'tools' / 'analysis_tools' / 'checkpointing_memory.py'


@pytest.fixture(scope='module')
def kept_bytes():
    return runpy.run_path(str(TOOL))['kept_bytes']


def test_kept_bytes_are_those_of_the_results_that_a_gradient_needs(kept_bytes):
    x = torch.randn(2, 3, 5, 7, requires_grad=True)
    one = 4 * x.numel()
    assert kept_bytes(nn.Sequential(nn.Sigmoid(), nn.Sigmoid()), x) == 2 * one
    assert kept_bytes(nn.Sequential(nn.Sigmoid(), nn.Flatten(), nn.ReLU(inplace=True)), x) == one
    assert kept_bytes(nn.Conv2d(3, 3, 1), x) == 0  # its input and weight are there anyway
    assert kept_bytes(nn.Sequential(nn.Sigmoid(), nn.Conv2d(3, 8, 1)), x) == one


def test_a_detectors_backbone_keeps_far_less(write_config, kept_bytes):
    plain, saving = (build_model(Config.fromfile(path)).backbone.train()
                     for path in (write_config(), write_config('checkpointing.py')))
    x = torch.randn(2, 3, 64, 64)
    kept, less = kept_bytes(plain, x), kept_bytes(saving, x)
    assert kept_bytes(plain, x) == kept
    # in each stage: what its merging's norm gets, what each block gets, and what comes out, of float32; beside the
    # batch statistics of two norms
    maps = [2 * width * (16 >> i)**2 for i, width in enumerate(plain.channels)]
    assert less == sum(4 * (depth + 2) * size for depth, size in zip(plain.depths, maps)) + 16 * sum(plain.channels)
    assert 3 * less < kept
    # evaluation does not compute twice, and keeps all
    assert kept_bytes(saving.eval(), x) == kept_bytes(plain.eval(), x)


@pytest.mark.slow
def test_the_tool_prints_both():
    done = subprocess.run([sys.executable, str(TOOL), '--arch', 't2', '--size', '256', '192', '--batch', '2',
                           '--rounds', '1', '--threads', '1'], capture_output=True, text=True, timeout=300,
                          env=dict(os.environ, COLUMNS='120'))
    assert done.returncode == 0, done.stderr
    rows = {with_cp: [float(n) for n in numbers] for with_cp, *numbers in
            re.findall(r'│ (True|False) +│ ([\d.]+) +│ (\d+) +│ ([\d.]+) +│', done.stdout)}
    (kept, peak, seconds), (less_kept, less_peak, more_seconds) = rows['False'], rows['True']
    assert less_kept < 0.25 * kept and less_peak < peak and kept < peak
    assert min(seconds, more_seconds) > 0
    assert 'PartialNet-T2, 2 x 256 x 192, cpu' in re.sub(r'\s+', ' ', done.stdout)
