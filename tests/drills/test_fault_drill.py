# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The fault drill of ``make faults``: some trials of each fault here, all of them among the slow tests."""
import pytest

from tests.drills.fault_drill import FAULTS, run_faults

ONE_PROCESS = [name for name, *_ in FAULTS if name != 'one of two processes killed']


def check(outcomes, most_lost):
    assert all(outcome.lost is not None and outcome.lost <= most_lost for outcome in outcomes), outcomes
    assert all(outcome.equal for outcome in outcomes), outcomes


def test_some_of_each_fault():
    results = dict(run_faults(0.1, seed=1, names=ONE_PROCESS))
    assert list(results) == ONE_PROCESS
    assert len(results['SIGKILL during a save']) == 4
    for name, outcomes in results.items():
        check(outcomes, 0 if name == 'pointer to nothing' else 1)


@pytest.mark.slow
def test_the_whole_drill():
    results = dict(run_faults(seed=2))
    kills = results['SIGKILL during a save'] + results['SIGKILL at any moment']
    assert len(kills) >= 50
    assert sum(outcome.in_save for outcome in kills) > len(kills) / 2
    for name, outcomes in results.items():
        check(outcomes, 0 if name == 'pointer to nothing' else 1)
