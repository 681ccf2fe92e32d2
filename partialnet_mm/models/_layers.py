# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Small layers and helpers: matrix products as convolutions, norms of one value, activation checkpointing."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# torch 2.1 does not have it; its compiler leaves checkpoint() to eager execution.
is_compiling = getattr(torch.compiler, 'is_compiling', bool)


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution, computed as one matrix product over all pixels.

    It takes any memory format and returns ``channels_last``, in which the next
    layer of this kind needs no copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C_in, H, W) to (B, C_out, H, W)."""
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class GlobalConv2d(nn.Conv2d):
    """Convolution whose kernel covers its whole input, computed as one matrix product over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C_in, K_h, K_w) to (B, C_out, 1, 1)."""
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


def normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """Applies a norm; a batch norm that gets one value per channel uses its running statistics.

    One value has no statistics, and torch raises. Gates get one value per
    image, and stage 4 gets one from an image of less than 64 pixels, so that
    the network would not train at batch size 1 without this.

    Args:
        norm: Any norm.
        x: (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    if norm.training and x.numel() == x.shape[1] and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
        gathers = isinstance(norm, nn.SyncBatchNorm) and get_world_size() > 1
        if not gathers:
            # The norm itself is called, so that hooks on it see this call too.
            norm.eval()
            try:
                return norm(x)
            finally:
                norm.train()
    return norm(x)


def checkpointed(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Runs a function of a module without keeping its activations; the backward pass computes them again.

    The second computation leaves the running statistics of batch norms
    unchanged: otherwise each step would update them twice.

    Args:
        module: The module, whose norms the function uses.
        function: From one tensor to one tensor.
        x: Its input.

    Returns:
        Its output, with the gradients of the plain call.
    """
    if is_compiling():
        return checkpoint(function, x, use_reentrant=False)
    return checkpoint(function, x, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), _kept_statistics(module)))


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    # The norms update copies. Switching the updates off would not do: autograd saves the statistics,
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
