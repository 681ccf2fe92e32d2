# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import time

import pytest

from partialnet_mm.analysis.timing import ratio_in_turns, time_in_turns


def test_takes_turns_and_leaves_the_warm_up_out():
    calls = []
    times = time_in_turns(dict(a=lambda: calls.append('a'), b=lambda: calls.append('b')), rounds=3, warmup=2)
    assert calls == ['a', 'b'] * 5
    assert {name: len(values) for name, values in times.items()} == dict(a=3, b=3)


def test_times_what_it_calls():
    times = time_in_turns(dict(short=lambda: None, long=lambda: time.sleep(0.02)), rounds=2)
    assert min(times['long']) >= 0.02 > max(times['short'])


@pytest.mark.parametrize('mine, low, high', [([2., 4., 9.], 2, 9), ([1., 2., 3., 4., 5.], 1.5, 4.5)])
def test_ratios_of_the_rounds(mine, low, high):
    times = dict(mine=mine, other=[1.] * len(mine))
    middle = sorted(mine)[len(mine) // 2]
    assert ratio_in_turns(times, 'mine', 'other') == dict(median=middle, low=low, high=high)


def test_a_slow_round_counts_as_one():
    times = dict(mine=[1., 1., 1.], other=[2., 2., 200.])
    assert ratio_in_turns(times, 'mine', 'other')['median'] == 0.5
