# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Measuring: times in alternating rounds, peak memory, the machine's name, tables."""
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn


class Spread(NamedTuple):
    """The median of some values and their quartiles; with fewer than four values, their lowest and highest."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """The three numbers as '1.23 (1.20-1.31)'."""
        return f'{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})'


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) < 4:
        return Spread(statistics.median(values), min(values), max(values))
    low, _, high = statistics.quantiles(values, n=4)
    return Spread(statistics.median(values), low, high)


def progress(items: Iterable, description: str) -> Iterable:
    """The items of a sequence, with a progress bar on stderr."""
    return track(items, description=description, console=Console(stderr=True))


def time_in_rounds(functions: Mapping[object, Callable[[], object]],
                   rounds: int,
                   warmup: int = 1) -> dict[object, list[float]]:
    """Seconds of each call of some functions, by name, timed in alternating rounds: A B A B.

    What slows the machine for a while then slows all of them. A progress bar on stderr shows the rounds.
    """
    times: dict[object, list[float]] = {name: [] for name in functions}
    for index in progress(range(-warmup, rounds), 'timing in alternating rounds'):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            synchronize()
            if index >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Mapping[object, Sequence[float]], name: object, reference: object) -> Spread:
    """How much longer one function takes than another: median and quartiles of the ratios of the rounds."""
    return spread([mine / other for mine, other in zip(times[name], times[reference])])


def synchronize() -> None:
    """Waits for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(function: Callable[[], object]) -> int:
    """The most memory in bytes that a function needs beyond what was in use before.

    On a GPU that is what PyTorch allocates. On the CPU (Linux only) it is resident memory, which grows only where no
    freed memory can be used again: measure one function per process, in a process that has done nothing before.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # getrusage has a peak, too, but a process inherits that of its parent; this one can be reset.
    Path('/proc/self/clear_refs').write_text('5')
    before = _memory_status('VmRSS')
    function()
    return _memory_status('VmHWM') - before


def kept_memory(model: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, without parameters, buffers and input."""
    given = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters(), *model.buffers())}
    kept = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # views share it
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        outs = model(x)
    del outs  # nothing was freed before, so no two storages can have had the same address
    return sum(kept.values())


def _memory_status(key: str) -> int:
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(f'{key}:'))
    return int(line.split()[1]) * 1024


def describe_machine(device: str) -> str:
    """The machine of a measurement on 'cpu' or 'cuda', e.g. 'AMD EPYC 73F3, 1 thread, torch 2.1.2'."""
    if device == 'cuda':
        processor = f'{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}'
    else:
        threads = torch.get_num_threads()
        info = Path('/proc/cpuinfo')  # on Linux; some ARM machines have it without names
        lines = info.read_text().splitlines() if info.is_file() else []
        names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
        name = names[0] if names else platform.processor() or platform.machine()
        processor = f'{name}, {threads} thread{"s" if threads > 1 else ""}'
    return f'{processor}, torch {torch.__version__}'


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; None is an empty cell."""
    head, *body = ('| ' + ' | '.join('' if cell is None else str(cell) for cell in line) + ' |'
                   for line in (headings, *rows))
    return '\n'.join((head, '|' + '---|' * len(headings), *body))
