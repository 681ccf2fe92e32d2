# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Channel gates: the factors by which PAT_ch weights its attended channels.

A gate maps (B, C, H, W) to (B, C, 1, 1). Gates are registered: any class with
an argument ``channels`` is a gate of ``gate=dict(type=...)``.
"""
import math

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from ._arguments import build_with
from ._folding import conv_of, fold_after, norm_affine, require_plain, weight_and_bias
from ._layers import GlobalConv2d, hard_sigmoid, is_compiling, normalize

#: Short names of the gates, the paper's own first.
GATES = dict(gaussian='GaussianGate', srm='SRMGate', se='SEGate', eca='ECAGate', cbam='CBAMGate')


def build_gate(gate: str | dict, channels: int, norm_cfg: dict = dict(type='BN')) -> nn.Module:
    """Builds a channel gate.

    Args:
        gate: A short name ('gaussian' is the paper's; 'srm', 'se', 'eca',
            'cbam'), or the config of a registered gate, to which ``channels``
            is added, and ``norm_cfg`` where its constructor takes one.
        channels: Channels of the feature map.
        norm_cfg: Norm of the gate. Defaults to ``dict(type='BN')``.

    Returns:
        From (B, C, H, W) to (B, C, 1, 1).

    Raises:
        ValueError: If the short name is unknown.
        KeyError: If no such type is registered.
    """
    if isinstance(gate, str):
        if gate not in GATES:
            raise ValueError(f'gate must be one of {tuple(GATES)} or dict(type=...), got {gate!r}')
        gate = dict(type=GATES[gate])
    return build_with(gate, dict(channels=channels), dict(norm_cfg=norm_cfg))


def variance_divisor(count: int) -> int:
    """``count - 1``, and 1 for a single pixel; a trace would keep the result of max() as a constant."""
    return count - 1 + 1 // count


def mean_and_deviation(x: Tensor) -> Tensor:
    """Mean and unbiased standard deviation of each channel, by passes that are vectorized on a CPU.

    Args:
        x: (B, C, H, W), quickest in ``channels_last``.

    Returns:
        (B, C, 1, 2), float32 for an input of half precision. The deviation of
        a single pixel is 0.
    """
    # With the channels last: torch.export does not follow other strides of a slice in symbolic sizes.
    pixels = x.permute(0, 2, 3, 1)
    # The difference is float32, too. The compiler of torch 2.1 does not follow torch.promote_types.
    mean = pixels.mean((1, 2), keepdim=True, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    divisor = variance_divisor(x.shape[2] * x.shape[3])
    variance = (pixels - mean).square().sum((1, 2), keepdim=True) / divisor
    # The root of 0 has no gradient.
    deviation = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
    return torch.cat((mean, deviation), dim=1).permute(0, 3, 2, 1)


class MeanAndDeviation(torch.autograd.Function):
    """:func:`mean_and_deviation` for training: of the feature maps, only the input is kept for the backward pass."""

    generate_vmap_rule = True
    forward = staticmethod(mean_and_deviation)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        x, output = ctx.saved_tensors
        count = x.shape[2] * x.shape[3]
        (mean, std), (grad_mean, grad_std) = output.split(1, dim=3), grad.split(1, dim=3)
        least = 2 * torch.finfo(std.dtype).tiny**0.5
        slope = torch.where(std > least, grad_std / std.clamp_min(least), 0) / variance_divisor(count)
        shift, mean, slope = (values.to(x.dtype) for values in (grad_mean / count, mean, slope))
        return torch.addcmul(shift, x - mean, slope)


class _StatisticsGate(nn.Module):
    """Gates from a convolution of kernel (1, 2) over each channel's mean and deviation, a norm and a Hard-Sigmoid."""

    def __init__(self, channels: int, groups: int, norm_cfg: dict) -> None:
        super().__init__()
        conv_type = GlobalConv2d if groups == 1 else nn.Conv2d
        self.conv = conv_type(channels, channels, (1, 2), groups=groups, bias=False)
        self.norm = build_norm_layer(norm_cfg, channels)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to gates (B, C, 1, 1) in [0, 1]."""
        # Exporters follow plain operators, and a compiler chooses by itself what it keeps.
        keeps_less = self.training and not is_compiling()
        statistics = MeanAndDeviation.apply(x) if keeps_less else mean_and_deviation(x)
        return hard_sigmoid(normalize(self.norm, self.conv(statistics.to(x.dtype))))

    def merged(self) -> nn.Module:
        """The inference form, with the norm folded into the convolution."""
        return MergedStatisticsGate(self)


class MergedStatisticsGate(nn.Module):
    """The inference form of :class:`GaussianGate` and :class:`SRMGate`.

    Args:
        gate: The trained gate, which stays as it is.
    """

    def __init__(self, gate: _StatisticsGate) -> None:
        super().__init__()
        conv = require_plain(gate.conv, f'the convolution of {type(gate).__name__}')
        weight, bias = weight_and_bias(conv)
        affine = norm_affine(gate.norm, f'the norm of {type(gate).__name__}', len(weight), weight.device)
        self.conv = conv_of(type(conv), conv, *fold_after(weight, bias, affine))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to gates (B, C, 1, 1) in [0, 1]."""
        return F.hardsigmoid(self.conv(mean_and_deviation(x).to(x.dtype)))


@MODELS.register_module()
class GaussianGate(_StatisticsGate):
    """Gaussian channel attention (Sec. 3.1 of the paper, PAT_ch).

    Each channel is summed up by its mean and its unbiased standard deviation
    over the feature map; a convolution of kernel (1, 2) mixes both over all
    channels; the result is normalized over the batch and goes through a
    Hard-Sigmoid.

    Args:
        channels: Channels of the feature map.
        norm_cfg: Norm of the gate. Defaults to ``dict(type='BN')``.
    """

    def __init__(self, channels: int, norm_cfg: dict = dict(type='BN')) -> None:
        super().__init__(channels, 1, norm_cfg)


@MODELS.register_module()
class SRMGate(_StatisticsGate):
    """Style-based recalibration, a gate of Table 12: like the Gaussian one, but each channel by itself.

    Paper: `SRM: A Style-based Recalibration Module for Convolutional Neural
    Networks <https://arxiv.org/abs/1903.10829>`_.

    Args:
        channels: Channels of the feature map.
        norm_cfg: Norm of the gate. Defaults to ``dict(type='BN')``.
    """

    def __init__(self, channels: int, norm_cfg: dict = dict(type='BN')) -> None:
        super().__init__(channels, channels, norm_cfg)


@MODELS.register_module()
class SEGate(nn.Module):
    """Squeeze-and-excitation, a gate of Table 12: two layers on each channel's mean.

    Paper: `Squeeze-and-Excitation Networks
    <https://arxiv.org/abs/1709.01507>`_.

    Args:
        channels: Channels of the feature map.
        reduction: Divides the channels between the two layers. Defaults to 4.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.expand = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to gates (B, C, 1, 1) in [0, 1]."""
        return F.hardsigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


@MODELS.register_module()
class ECAGate(nn.Module):
    """Efficient channel attention: a 1-D convolution over the channels' means.

    Paper: `ECA-Net: Efficient Channel Attention for Deep Convolutional Neural
    Networks <https://arxiv.org/abs/1910.03151>`_, whose kernel size follows
    from the number of channels, ``|log2(C) / gamma + beta / gamma|``, rounded
    to an odd number (its Eq. (12)).

    Args:
        channels: Channels of the feature map.
        gamma: Divides the logarithm of the channels. Defaults to 2.
        beta: Is added to it. Defaults to 1.
    """

    def __init__(self, channels: int, gamma: float = 2, beta: float = 1) -> None:
        super().__init__()
        size = int(abs((math.log2(channels) + beta) / gamma))
        kernel_size = size if size % 2 else size + 1
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to gates (B, C, 1, 1) in [0, 1]."""
        return torch.sigmoid(self.conv(x.mean((2, 3)).unsqueeze(1))).transpose(1, 2).unsqueeze(3)


@MODELS.register_module()
class CBAMGate(nn.Module):
    """The channel half of CBAM: two shared layers on each channel's mean and on its maximum, summed.

    Paper: `CBAM: Convolutional Block Attention Module
    <https://arxiv.org/abs/1807.06521>`_, its Eq. (2).

    Args:
        channels: Channels of the feature map.
        reduction: Divides the channels between the two layers. Defaults to
            16.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to gates (B, C, 1, 1) in [0, 1]."""
        means, maxima = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.sigmoid(sum(self.expand(F.relu(self.reduce(values))) for values in (means, maxima)))
