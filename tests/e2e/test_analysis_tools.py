# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Commands that measure and compare, run as a user runs them."""
import json
import os
import re
import subprocess
import sys

import pytest

from tests.helpers.libraries import ROOT

TOOLS = ROOT / 'tools' / 'analysis_tools'


def run(tool, *args):
    return subprocess.run([sys.executable, str(TOOLS / tool), *map(str, args)], capture_output=True, text=True,
                          env=dict(os.environ, OMP_NUM_THREADS='1', COLUMNS='160'))


def write_run(work_dir, values, first=1):
    """A work folder with the log of one run."""
    vis_data = work_dir / f'run{first}' / 'vis_data'
    vis_data.mkdir(parents=True)
    lines = []
    for epoch, value in enumerate(values, first):
        lines.append(dict(lr=0.1, loss=1., step=epoch * 100))
        lines.append({'accuracy/top1': value, 'accuracy/top5': 99., 'step': epoch})
    (vis_data / 'scalars.json').write_text('\n'.join(json.dumps(line) for line in lines))


def test_learning_curves_by_seed(tmp_path):
    write_run(tmp_path / 'net_a_seed0', [10, 20, 30])
    write_run(tmp_path / 'net_a_seed1', [10, 25])
    write_run(tmp_path / 'net_a_seed1', [34.5], first=3)  # resumed
    write_run(tmp_path / 'net_b', [50, 60.125])
    picture = tmp_path / 'curves.png'
    result = run('learning_curves.py', tmp_path / 'net_a_seed0', tmp_path / 'net_a_seed1', tmp_path / 'net_b',
                 '--out', picture)
    assert result.returncode == 0, result.stderr
    rows = [re.findall(r'[\w.]+', line) for line in result.stdout.splitlines() if 'net_' in line]
    assert rows == [['net_a', '2', '3', '32.25', '30.00', '34.50'], ['net_b', '1', '2', '60.12', '60.12', '60.12']]
    assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('metric, message', [('mAP', r"no log of 'mAP'; it has \['accuracy/top1', 'accuracy/top5'")])
def test_learning_curves_names_what_there_is(tmp_path, metric, message):
    write_run(tmp_path / 'net', [10])
    result = run('learning_curves.py', tmp_path / 'net', '--metric', metric)
    assert result.returncode == 2 and re.search(message, result.stderr), result.stderr


def test_train_step():
    pytest.importorskip('timm')
    result = run('train_step.py', '--archs', 't0', '--batch', 2, '--size', 32, '--rounds', 2, '--threads', 1)
    assert result.returncode == 0, result.stderr
    rows = [line.split('│')[1:-1] for line in result.stdout.splitlines() if '-T0 ' in line]
    assert [row[0].strip() for row in rows] == ['PartialNet-T0', 'PartialNet, plain-T0', 'FasterNet (timm)-T0']
    for _, seconds, images, ratio, memory in rows:
        assert float(seconds) * float(images) == pytest.approx(2, rel=0.1)
        assert float(ratio.split()[0]) > 0 and float(memory) > 0
    differences = re.findall(r'relative: loss (\S+), gradient\s+(\S+)', result.stdout)
    assert len(differences) == 1 and max(map(float, differences[0])) < 1e-10
