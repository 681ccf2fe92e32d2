# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Times that can be compared on a machine that is never quiet: in turns, and as ratios."""
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def time_in_turns(functions: Mapping[str, Callable[[], object]],
                  rounds: int,
                  warmup: int = 1) -> dict[str, list[float]]:
    """Times functions one after another, round by round: A B A B.

    What slows the machine for a while then slows all of them. On a GPU each
    call is waited for.

    Args:
        functions: What to time, by name.
        rounds: How often each is timed.
        warmup: Rounds before them that do not count. Defaults to 1.

    Returns:
        dict[str, list[float]]: Seconds of each call, by name, in the order of
        the rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(-warmup, rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def ratio_in_turns(times: Mapping[str, list[float]], name: str, reference: str) -> dict[str, float]:
    """How much longer one function takes than another, from :func:`time_in_turns`.

    Args:
        times: Seconds by name.
        name: The function.
        reference: What it is compared with.

    Returns:
        dict[str, float]: The ratios of the rounds: 'median', and 'low' and
        'high', the quartiles (the extremes for fewer than four rounds).
    """
    ratios = [mine / other for mine, other in zip(times[name], times[reference])]
    if len(ratios) < 4:
        low, high = min(ratios), max(ratios)
    else:
        low, _, high = statistics.quantiles(ratios, n=4)
    return dict(median=statistics.median(ratios), low=low, high=high)
