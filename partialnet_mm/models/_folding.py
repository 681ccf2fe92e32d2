# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Folding of batch norms into the linear layers beside them, for deployment."""

import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn


def norm_affine(norm: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """What a batch norm computes at inference: ``scale * x + shift``.

    Args:
        norm: A batch norm with running statistics.
        name: How error messages call it.

    Returns:
        tuple[Tensor, Tensor]: Scale and shift, float64, (C,) each. Double
        precision keeps products of several folded layers exact to float32.

    Raises:
        TypeError: If the norm is not a batch norm.
        ValueError: If it has no running statistics, or is a SyncBN that has
            never gathered any.
    """
    if not isinstance(norm, _BatchNorm):
        raise TypeError(f'{name} is a {type(norm).__name__}, which depends on its input at inference and cannot be '
                        f'merged into a convolution; allowed are BN and SyncBN')
    if norm.running_mean is None:
        raise ValueError(f'{name} is a {type(norm).__name__} with track_running_stats=False: without running '
                         'statistics it cannot be merged')
    if isinstance(norm, nn.SyncBatchNorm) and not norm.num_batches_tracked:
        raise ValueError(f'{name} is a SyncBatchNorm that has seen no batch: load the trained checkpoint before '
                         'merging, its statistics were never gathered')
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale = scale * norm.weight.double()
        shift = shift * norm.weight.double() + norm.bias.double()
    return scale.detach(), shift.detach()


@torch.no_grad()
def fold_norm_after(conv: nn.Conv2d, norm: nn.Module, name: str) -> nn.Conv2d:
    """The one convolution that computes ``norm(conv(x))`` at inference.

    Args:
        conv: The convolution.
        norm: The batch norm after it.
        name: How error messages call the norm.

    Returns:
        nn.Conv2d: A convolution with bias, of the same sizes, dtype and device.
    """
    scale, shift = norm_affine(norm, name)
    weight = conv.weight.double() * scale.view(-1, *[1] * (conv.weight.dim() - 1))
    bias = shift if conv.bias is None else shift + scale * conv.bias.double()
    return conv_like(conv, weight, bias)


@torch.no_grad()
def fold_affine_before(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """The one 1x1 convolution that computes ``conv(scale * x + shift)``.

    Args:
        conv: A 1x1 convolution; a larger one would see the shift
            end at the border of the map.
        scale: float64, (C_in,).
        shift: float64, (C_in,).

    Returns:
        nn.Conv2d: A convolution with bias, of the same sizes, dtype and device.
    """
    weight = conv.weight.double()
    bias = weight.flatten(1) @ shift
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    return conv_like(conv, weight * scale.view(1, -1, 1, 1), bias)


@torch.no_grad()
def fold_scale_after(conv: nn.Conv2d, scale: Tensor | None) -> nn.Conv2d:
    """The one convolution, with bias, that computes ``scale * conv(x)``.

    Args:
        conv: The convolution.
        scale: One factor for each output channel, of any
            shape; None for 1.

    Returns:
        nn.Conv2d: A convolution with bias, of the same sizes, dtype and device.
    """
    factors = torch.ones_like(conv.weight[:, 0, 0, 0], dtype=torch.float64) if scale is None else scale.double()
    factors = factors.flatten()
    bias = torch.zeros_like(factors) if conv.bias is None else conv.bias.double()
    return conv_like(conv, conv.weight.double() * factors.view(-1, 1, 1, 1), bias * factors)


@torch.no_grad()
def conv_like(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A convolution with other weights and the geometry, dtype and device of ``conv``.

    Args:
        conv: Gives stride, padding, dilation, groups, dtype, device.
        weight: (C_out, C_in / groups, K_h, K_w).
        bias: (C_out,).

    Returns:
        nn.Conv2d: The new layer.
    """
    new = nn.Conv2d(
        weight.shape[1] * conv.groups, weight.shape[0], conv.kernel_size, conv.stride, conv.padding,
        conv.dilation, conv.groups, bias=bias is not None, padding_mode=conv.padding_mode, device=conv.weight.device,
        dtype=conv.weight.dtype)
    new.weight.copy_(weight)
    if bias is not None:
        new.bias.copy_(bias)
    return new
