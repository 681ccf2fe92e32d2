# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The algebra of batch norms: folding them into the convolutions beside them.

All functions work on tensors in float64, keep gradients, and change nothing.
Double precision keeps products of several folded layers exact to float32.
"""
import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn

#: Scale and shift of each channel, float64, (C, ).
Affine = tuple[Tensor, Tensor]


def local_norm(norm_cfg: dict) -> dict:
    """The norm of a network that is merged when it is built: a SyncBN would have to gather statistics first."""
    return dict(norm_cfg, type='BN') if norm_cfg.get('type') == 'SyncBN' else norm_cfg


def norm_affine(norm: nn.Module, name: str, channels: int, device: torch.device | str = 'cpu') -> Affine:
    """What a batch norm computes at inference: ``scale * x + shift``.

    Args:
        norm: A batch norm with running statistics, or an identity, which is
            what is left of a norm that other tools have fused.
        name: How error messages call it.
        channels: Channels of its input.
        device: Where to make the affine of an identity. Defaults to 'cpu'.

    Returns:
        Scale and shift, float64, (C, ) each.

    Raises:
        TypeError: If the norm is neither.
        ValueError: If it has no running statistics, or is a SyncBN that has
            never gathered any.
    """
    if isinstance(norm, nn.Identity):
        one = torch.ones(channels, dtype=torch.float64, device=device)
        return one, torch.zeros_like(one)
    if not isinstance(norm, _BatchNorm):
        raise TypeError(f'{name} is a {type(norm).__name__}, which depends on its input at inference and cannot be '
                        f'folded into a convolution; allowed are BN and SyncBN')
    if norm.running_mean is None:
        raise ValueError(f'{name} is a {type(norm).__name__} with track_running_stats=False: without running '
                         'statistics it cannot be folded')
    if isinstance(norm, nn.SyncBatchNorm) and not norm.num_batches_tracked:
        raise ValueError(f'{name} is a SyncBatchNorm that has seen no batch: load the trained checkpoint before '
                         'merging, its statistics were never gathered')
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale = scale * norm.weight.double()
        shift = shift * norm.weight.double() + norm.bias.double()
    return scale, shift


def weight_and_bias(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution, float64; zeros where it has no bias."""
    weight = conv.weight.double()
    return weight, weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()


def fold_after(weight: Tensor, bias: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that computes ``scale * conv(x) + shift``."""
    scale, shift = affine
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias * scale + shift


def fold_before(weight: Tensor, bias: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
    """Weight and bias of the 1x1 convolution that computes ``conv(scale * x + shift)``.

    A larger convolution would see the shift end at the border of the feature
    map.
    """
    scale, shift = affine
    return weight * scale.view(1, -1, 1, 1), bias + weight.flatten(1) @ shift


@torch.no_grad()
def conv_of(layer_type: type[nn.Conv2d], like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution with given weights, and geometry, dtype and device of another.

    Args:
        layer_type: Class of the new layer.
        like: Gives stride, padding, dilation, groups, dtype and device.
        weight: (C_out, C_in / groups, K_h, K_w).
        bias: (C_out, ).

    Returns:
        The new layer, its weights contiguous.
    """
    new = nn.utils.skip_init(
        layer_type, weight.shape[1] * like.groups, weight.shape[0], like.kernel_size, like.stride, like.padding,
        like.dilation, like.groups, bias=True, padding_mode=like.padding_mode, device=like.weight.device,
        dtype=like.weight.dtype)
    new.weight.copy_(weight)
    new.bias.copy_(bias)
    return new.train(like.training)


def require_plain(layer: nn.Module, name: str) -> nn.Conv2d:
    """Refuses a convolution that something sits on, which its merged form would leave out.

    Args:
        layer: What was built as a convolution.
        name: How error messages call it.

    Returns:
        The layer.

    Raises:
        TypeError: If it was replaced by an adapter or quantized, or has
            forward hooks.
    """
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(f'{name} is a {type(layer).__name__}: switch_to_deploy() of PartialNet folds plain '
                        'convolutions; merge or remove what wraps this one first')
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise TypeError(f'{name} has forward hooks, which switch_to_deploy() of PartialNet would leave out: remove '
                        'them first (a pruned layer by torch.nn.utils.prune.remove)')
    return layer
