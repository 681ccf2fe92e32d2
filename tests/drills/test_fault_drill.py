# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The fault drill of ``make faults``: some trials of each fault here, all of them among the slow tests."""
import re
import subprocess
import sys

import pytest

from tests.drills.fault_drill import FAULTS, LOSE_NOTHING, run_faults
from tests.helpers.libraries import ROOT

TWO_PROCESSES = ['one of two processes killed', 'torchrun killed', 'one told to leave in validation',
                 'Ctrl-C twice in a slow save']
ONE_PROCESS = [name for name, *_ in FAULTS if name not in TWO_PROCESSES]


def check(results):
    for name, outcomes in results.items():
        most_lost = 0 if name in LOSE_NOTHING else 1
        assert all(outcome.lost is not None and outcome.lost <= most_lost for outcome in outcomes), (name, outcomes)
        assert all(outcome.equal and not outcome.wrong for outcome in outcomes), (name, outcomes)


def test_the_target_of_make_starts_it():
    """Another distribution may have installed a package named tests."""
    words = re.search(r'^faults:.*\n\t\$\(BIN\)/python (.*)$', (ROOT / 'Makefile').read_text(), re.M)[1].split()
    done = subprocess.run([sys.executable, *words, '--help'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'Interrupts trainings' in done.stdout, done.stderr


def test_some_of_each_fault():
    results = dict(run_faults(0.1, seed=1, names=ONE_PROCESS))
    assert list(results) == ONE_PROCESS
    assert len(results['SIGKILL during a save']) == 4
    check(results)


@pytest.mark.slow
@pytest.mark.two_processes
@pytest.mark.parametrize('name', TWO_PROCESSES)
def test_some_of_each_fault_of_two_processes(name):
    results = dict(run_faults(0.1, seed=1, names=[name]))
    assert list(results) == [name]
    check(results)


@pytest.mark.slow
def test_the_whole_drill():
    results = dict(run_faults(seed=2))
    kills = results['SIGKILL during a save'] + results['SIGKILL at any moment']
    assert len(kills) >= 50
    assert sum(outcome.in_save for outcome in kills) > len(kills) / 2
    check(results)
