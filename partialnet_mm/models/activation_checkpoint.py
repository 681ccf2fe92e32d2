# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Activation checkpointing that trains exactly what plain training does."""
from contextlib import contextmanager, nullcontext
from typing import Iterator

from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
    return checkpoint(module, x, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), _frozen_statistics(module)))


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    # In training mode, a batch norm that does not track statistics normalizes
    # by those of the batch, as before, and updates nothing.
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
