# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Peak memory of a computation."""
from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(function: Callable[[], object]) -> int:
    """Runs a function and measures what it needs at most beyond what was there before.

    On a GPU that is what PyTorch allocates. On the CPU it is resident memory,
    which only grows where nothing is free to be used again: measure in a
    process that has done nothing before, one function a process.

    Args:
        function: What to run.

    Returns:
        int: Bytes.

    Raises:
        OSError: If there is no GPU and the system is not Linux.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # getrusage's peak would do, but a process inherits its parent's; this one can be set back.
    Path('/proc/self/clear_refs').write_text('5')
    before = _status('VmRSS')
    function()
    return _status('VmHWM') - before


def _status(key: str) -> int:
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(f'{key}:'))
    return int(line.split()[1]) * 1024
