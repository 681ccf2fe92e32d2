# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Small layers and helpers: matrix products as convolutions, norms of one value, recomputation in training."""
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from mmengine.logging import print_log
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


def hard_sigmoid(x: Tensor) -> Tensor:
    """``F.hardsigmoid``, by operators that have a second derivative, which that one does not have on a CPU."""
    return F.relu6(x + 3) / 6


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


def check_statistics(norms: Iterable[nn.Module], owner: str, scratch: str) -> bool:
    """Logs a warning if batch norms that keep their statistics in training have no others than the initial ones.

    The statistics themselves are read: a resume, load_from and the user's own code load them, too. mmengine's loggers
    write a warning once, so many layers of one kind give one line.

    Args:
        norms: The norms of a module with ``norm_eval``, at a training step.
        owner: How the message calls the module.
        scratch: Where a config for random weights is, after a comma; may be empty.

    Returns:
        False for tensors without values, of torch's meta device or FakeTensorMode, otherwise True.
    """
    try:
        initial = [not norm.running_mean.any() and bool((norm.running_var == 1).all())
                   for norm in norms if norm.running_mean is not None]
    except RuntimeError:
        return False
    if initial and all(initial):
        print_log(
            f'norm_eval=True, but no checkpoint had statistics for the batch norms of {owner}: all have mean 0 and '
            'variance 1, and keep them, so the network trains WITHOUT NORMALIZATION and learns worse. Load a '
            "pretrained checkpoint (init_cfg=dict(type='Pretrained', checkpoint=FILE, prefix='backbone.'), or "
            f'load_from), or train from random weights with norm_eval=False{scratch}',
            logger='current', level=logging.WARNING)
    return True


def has_no_hooks(module: nn.Module) -> bool:
    """Whether no hook would miss a call of this module."""
    return not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks)


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


#: Applies a norm to its input.
Normalize = Callable[[nn.Module, Tensor], Tensor]


def recomputed(module: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Runs a norm, an activation and the layer that follows; a module that recomputes keeps only the inputs.

    The backward pass computes all before the last layer again: torch's
    checkpoint stops where that layer has what it saves. A batch norm uses the
    statistics of the first computation then, and updates its running ones
    once. A compiler chooses by itself what to compute again, so it gets the
    plain call.

    Args:
        module: Computes twice in training if its ``recompute`` is set.
        function: From a :data:`Normalize`, by which it applies one norm, and
            the inputs to its output, e.g. ``lambda normalize, x:
            conv(act(normalize(norm, x)))``.
        *inputs: Its other arguments.

    Returns:
        Its output, with the gradients of the plain call.
    """
    if not (module.recompute and module.training and torch.is_grad_enabled()) or is_compiling():
        return function(normalize, *inputs)
    return checkpoint(functools.partial(function, _NormalizeTwice()), *inputs, use_reentrant=False)


class _NormalizeTwice:
    """:func:`normalize` for two computations, of which the second changes no norm."""

    def __init__(self) -> None:
        self.statistics: dict[nn.Module, list[Tensor]] = {}

    def __call__(self, norm: nn.Module, x: Tensor) -> Tensor:
        again = norm in self.statistics
        statistics = self.statistics.setdefault(norm, [])
        if (type(norm) is nn.BatchNorm2d and norm.training and x.numel() > x.shape[1] and has_no_hooks(norm)
                and norm.running_mean is not None and norm.momentum is not None):
            return _BatchNormTwice.apply(x, norm.weight, norm.bias, norm, statistics)
        # Other norms are called both times: a SyncBN gathers again, and hooks see both calls.
        with _kept_statistics(norm) if again else nullcontext():
            return normalize(norm, x)


class _BatchNormTwice(torch.autograd.Function):
    """A batch norm in training that computes the statistics of the batch, unless it is given them."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor | None, bias: Tensor | None,
                norm: nn.BatchNorm2d, statistics: list[Tensor]) -> Tensor:
        if statistics:
            mean, inverse_std = statistics
            out = F.batch_norm(x, mean, inverse_std.pow(-2), weight, bias, eps=0.)
        else:
            norm.num_batches_tracked.add_(1)
            out, mean, inverse_std = torch.native_batch_norm(
                x, weight, bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps)
            statistics += mean, inverse_std
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.eps = norm.eps
        return out

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse_std, True, ctx.eps, list(ctx.needs_input_grad[:3]))
        return *gradients, None, None


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
