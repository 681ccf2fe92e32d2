# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The algebra of batch norms: folding them into the convolutions beside them.

All functions are differentiable, and change nothing. They serve two callers:

- Merging a trained network computes once, in float64, which keeps products of
  several folded layers exact to float32.
- A step of training in the folded form (``training=True``) computes in the
  dtype of the parameters, float32 or higher.
"""
import torch
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn

from ..config_types import type_name
from ._layers import GlobalConv2d, PointwiseConv2d, has_no_hooks

#: Scale and shift of each channel, (C, ).
Affine = tuple[Tensor, Tensor]


def local_norm(norm_cfg: dict) -> dict:
    """The norm of a network that is merged when it is built: a SyncBN would have to gather statistics first."""
    return dict(norm_cfg, type='BN') if type_name(norm_cfg.get('type')) == 'SyncBN' else norm_cfg


def norm_affine(norm: nn.Module, name: str, channels: int, device: torch.device | str = 'cpu',
                training: bool = False) -> Affine:
    """What a batch norm computes at inference: ``scale * x + shift``.

    Args:
        norm: A batch norm with running statistics, or an identity, which is
            what is left of a norm that other tools have fused.
        name: How error messages call it.
        channels: Channels of its input.
        device: Where to make the affine of an identity. Defaults to 'cpu'.
        training: Whether it is for one step of training. Defaults to False.

    Returns:
        Scale and shift, (C, ) each.

    Raises:
        TypeError: If the norm is neither, or has hooks.
        ValueError: If it has no running statistics; at merging, if it is a
            SyncBN that has never gathered any; in training, if it is in
            training mode.
    """
    require_no_hooks(norm, name)
    if isinstance(norm, nn.Identity):
        one = torch.ones(channels, dtype=torch.float32 if training else torch.float64, device=device)
        return one, torch.zeros_like(one)
    if not isinstance(norm, _BatchNorm):
        raise TypeError(f'{name} is a {type(norm).__name__}, which depends on its input at inference and cannot be '
                        f'folded into a convolution; allowed are BN and SyncBN')
    if norm.running_mean is None:
        raise ValueError(f'{name} is a {type(norm).__name__} with track_running_stats=False: without running '
                         'statistics it cannot be folded')
    if training and norm.training:
        raise ValueError(f'{name} is in training mode, where it normalizes by its batch and cannot be folded: '
                         'train_folded=True needs the batch norms as norm_eval=True sets them')
    if not training and isinstance(norm, nn.SyncBatchNorm) and not norm.num_batches_tracked:
        raise ValueError(f'{name} is a SyncBatchNorm that has seen no batch: load the trained checkpoint before '
                         'merging, its statistics were never gathered')
    mean, variance = _precise(norm.running_mean, training), _precise(norm.running_var, training)
    scale = torch.rsqrt(variance + norm.eps)
    if not norm.affine:
        return scale, -mean * scale
    scale = scale * _precise(norm.weight, training)
    return scale, _precise(norm.bias, training) - mean * scale


def _precise(tensor: Tensor, training: bool) -> Tensor:
    """A tensor in the dtype of the algebra."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32) if training else torch.float64)


def weight_and_bias(conv: nn.Conv2d, training: bool = False) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution, in the dtype of the algebra; zeros where it has no bias."""
    weight = _precise(conv.weight, training)
    return weight, weight.new_zeros(len(weight)) if conv.bias is None else _precise(conv.bias, training)


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
    """Refuses a convolution that something sits on, which its folded form would leave out.

    Args:
        layer: What was built as a convolution. Parametrizations of its weight
            are no obstacle: they act whenever the weight is read.
        name: How error messages call it.

    Returns:
        The layer.

    Raises:
        TypeError: If it was replaced by an adapter or quantized, computes
            otherwise than a convolution, or has hooks.
    """
    forward = getattr(layer.forward, '__func__', None)
    if not isinstance(layer, nn.Conv2d) or forward not in (
            nn.Conv2d.forward, PointwiseConv2d.forward, GlobalConv2d.forward):
        raise TypeError(f'{name} is a {type(layer).__name__}: PartialNet folds plain convolutions, in '
                        'switch_to_deploy() and with train_folded=True; merge or remove what wraps this one first')
    require_no_hooks(layer, name)
    return layer


def require_no_hooks(module: nn.Module, name: str) -> None:
    """Refuses a module whose hooks would be left out, because what it computes is folded into another.

    Args:
        module: Any module.
        name: How error messages call it.

    Raises:
        TypeError: If it has forward or backward hooks.
    """
    if not has_no_hooks(module):
        raise TypeError(f'{name} has hooks, which its folded form would leave out: remove them first (a pruned layer '
                        'by torch.nn.utils.prune.remove), or train with train_folded=False')
