# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Activation checkpointing that trains exactly what plain training does."""
from contextlib import contextmanager, nullcontext
from typing import Iterator

import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Not in torch 2.1, whose compiler leaves checkpoint() to eager execution.
_is_compiling = getattr(torch.compiler, 'is_compiling', bool)


def checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """Runs a module without keeping its activations; the backward pass computes them again.

    The second computation leaves the running statistics of batch norms alone:
    otherwise each step would enter them twice.

    Args:
        module (nn.Module): From one tensor to one tensor.
        x (Tensor): Its input.

    Returns:
        Tensor: Its output, with the gradients of the plain call.
    """
    if _is_compiling():
        return checkpoint(module, x, use_reentrant=False)
    return checkpoint(module, x, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), _kept_statistics(module)))


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    # The norms update copies. To switch the updates off would not do: autograd saves the statistics,
    # too, and both computations must save the same.
    kept = [(norm, name, buffer) for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training
            for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
