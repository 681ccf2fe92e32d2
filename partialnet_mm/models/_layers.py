# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Norms that also train on one value per channel; activation checkpointing without side effects."""
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Not in torch 2.1, whose compiler leaves checkpoint() to eager execution.
_is_compiling = getattr(torch.compiler, 'is_compiling', bool)


def normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """Applies a norm; a batch norm that gets one value a channel uses its running statistics.

    One value has no statistics, and torch raises. Gates get one value an
    image, and stage 4 one of an image of less than 64 pixels, so that
    otherwise the network would not train at batch size 1.

    Args:
        norm: Any norm.
        x: (B, C, H, W).

    Returns:
        Tensor: (B, C, H, W).
    """
    if norm.training and x.numel() == x.shape[1] and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
        gathers = isinstance(norm, nn.SyncBatchNorm) and get_world_size() > 1
        if not gathers:
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False,
                                eps=norm.eps)
    return norm(x)


def checkpointed(module: nn.Module, x: Tensor) -> Tensor:
    """Runs a module without keeping its activations; the backward pass computes them again.

    The second computation leaves the running statistics of batch norms alone:
    otherwise each step would enter them twice.

    Args:
        module: From one tensor to one tensor.
        x: Its input.

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
