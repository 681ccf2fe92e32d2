# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Hostile and damaged files through every tool that opens a checkpoint: see tests/helpers/hostile_runs.py."""
import json
import os
import subprocess
import sys

import pytest

from tests.helpers.hostile_checkpoints import KINDS
from tests.helpers.libraries import ROOT

pytest.importorskip('mmpretrain')
pytest.importorskip('onnx')
from tests.helpers.hostile_runs import ENTRIES, QUICK, SECONDS, quick_kinds  # noqa: E402

#: What a refusal says, whoever reports it.
REASONS = ('cannot be read: ', 'does not exist', 'instead of its state dict', 'a tensor by the name',
           'truncated or damaged', 'weight is a ', 'it has no ', 'only 0 of', 'it fits 0 of', 'no PartialNet',
           'not tensors', 'it holds no search', 'is of no search', 'holds no tensors', 'it is damaged',
           'it is a folder', 'it is not a regular file', ': it does not exist')


def run_all(folder, extent):
    done = subprocess.run(
        [sys.executable, '-m', 'tests.helpers.hostile_runs', str(folder), extent], cwd=ROOT, capture_output=True,
        text=True, env=dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]


def faults_of(run, healthy):
    """What is wrong with how a tool took a file; it may do no more than with a healthy one."""
    lines = [line for line in run['said'].splitlines() if line.strip()]
    refusals = [line for line in lines if any(reason in line for reason in REASONS)]
    allowed = {'c.pth', 'work'}
    found = dict(
        ran=run['canary'] or not set(run['deeds']) <= set(healthy['deeds']),
        wrote=bool(run['weights']) or not set(run['written']) <= allowed,
        status=run['status'] not in (1, 2),
        sentence=not refusals or not refusals[-1].isprintable() or len(refusals[-1]) > 2500,
        slow=run['seconds'] > SECONDS)
    return [fault for fault, there in found.items() if there]


def check(runs):
    healthy = {run['entry']: run for run in runs if run['kind'] == 'healthy'}
    for run in runs:
        if run['kind'] == 'healthy':
            assert run['status'] == 0, (run['entry'], run['said'][-2000:])
        else:
            assert faults_of(run, healthy[run['entry']]) == [], run


@pytest.fixture(scope='module')
def quick_runs(tmp_path_factory):
    return run_all(tmp_path_factory.mktemp('hostile'), 'quick')


@pytest.mark.parametrize('entry', ENTRIES)
def test_one_of_each_sort(entry, quick_runs):
    runs = [run for run in quick_runs if run['entry'] == entry]
    assert {run['kind'] for run in runs} == {'healthy', *quick_kinds(entry)}
    check(runs)


def test_the_quick_runs_have_every_sort():
    assert {kind for entry in ENTRIES for kind in quick_kinds(entry)} == set(QUICK)


def test_the_page_counts_right():
    page = ' '.join((ROOT / 'docs/safety.md').read_text().split())
    assert f'{len(KINDS)} kinds of hostile and damaged files and runs them through {len(ENTRIES)} entry points' in page


@pytest.mark.slow
def test_every_kind(tmp_path, capsys):
    """Prints a table, kinds by entries: '.' is refused in one sentence, with nothing run and nothing written."""
    runs = run_all(tmp_path, 'all')
    table = [f'{number:3} {entry}' for number, entry in enumerate(ENTRIES, 1)]
    table.append(' ' * 40 + ''.join(f'{number:3}' for number in range(1, len(ENTRIES) + 1)))
    healthy = {run['entry']: run for run in runs if run['kind'] == 'healthy'}
    for kind in KINDS:
        found = {run['entry']: faults_of(run, healthy[run['entry']]) for run in runs if run['kind'] == kind}
        table.append(f'{kind:40}' + ''.join('  X' if found[entry] else '  .' for entry in ENTRIES))
    with capsys.disabled():
        sys.stdout.write('\n'.join(['', *table, '']))
    check(runs)
