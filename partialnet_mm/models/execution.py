# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Which way to compute the same function is the quick one."""
import torch
from torch import Tensor

# torch 2.1 has these under their first names only.
_is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._dynamo.is_compiling
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)
_autocast_takes_device = hasattr(torch, 'get_autocast_dtype')


def _autocasts() -> bool:
    return torch.is_autocast_enabled('cpu') if _autocast_takes_device else torch.is_autocast_cpu_enabled()


def runs_on_cpu(x: Tensor) -> bool:
    """Whether a map is being computed with on a CPU, at once, in float32 and without gradients.

    There, memory traffic and the number of operations decide, and some layers
    here have a second way to compute what they compute. Where a gradient is
    wanted, on other devices, in half precision, and where a compiler, an
    exporter or a tracer looks on, they keep to plain PyTorch.

    Args:
        x: The map.

    Returns:
        bool: Whether it is so.
    """
    return (x.device.type == 'cpu' and x.dtype == torch.float32 and not torch.is_grad_enabled()
            and not _autocasts() and not _is_compiling() and not torch.jit.is_tracing())


def compiles_for_cpu(x: Tensor) -> bool:
    """Whether ``torch.compile`` is at work on the inference of a map on a CPU.

    Args:
        x: The map.

    Returns:
        bool: Whether it is so; not for exporters, whose graphs run elsewhere.
    """
    return x.device.type == 'cpu' and not torch.is_grad_enabled() and _is_compiling() and not _is_exporting()
