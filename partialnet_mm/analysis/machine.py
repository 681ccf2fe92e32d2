# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What a measurement was made on."""
import platform
from pathlib import Path

import torch


def describe_machine(device: str) -> str:
    """Name of the processor that a device is, and the version of PyTorch.

    Args:
        device: 'cpu' or 'cuda'.

    Returns:
        str: E.g. 'AMD EPYC 73F3 16-Core Processor, 1 thread, torch 2.1.2'. The
        threads are those that PyTorch uses now.
    """
    if device == 'cuda':
        processor = f'{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}'
    else:
        threads = torch.get_num_threads()
        processor = f'{_cpu_name()}, {threads} thread{"s" if threads > 1 else ""}'
    return f'{processor}, torch {torch.__version__}'


def _cpu_name() -> str:
    info = Path('/proc/cpuinfo')  # Linux; elsewhere, and on some ARM machines, Python knows what there is to know
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()
