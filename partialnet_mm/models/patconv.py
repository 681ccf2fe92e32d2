# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Partial convolution, and partial attention convolution: PAT_ch, PAT_sp and PAT_sf.

Each divides the channels of its input, applies a convolution to the first ones
and an attention (or nothing) to the others, and joins both (Eq. (1) of the
paper).
"""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from torch import Tensor, nn

from ._folding import Affine, norm_affine, require_no_hooks, require_plain, weight_and_bias
from ._layers import Normalize, hard_sigmoid, normalize, recomputed
from .gates import build_gate
from .position_bias import RelativePositionBias


def split_channels(channels: int, split_ratio: float) -> tuple[int, int]:
    """Divides a width into convolved and attended channels.

    Args:
        channels: Channels of the feature map.
        split_ratio: Fraction of the channels that is convolved (``r_p`` of the
            paper), in (0, 1].

    Returns:
        The number of convolved channels, which come first, and of attended
        channels; the latter is 0 at a ratio of 1.

    Raises:
        ValueError: If the ratio is outside (0, 1] or leaves no channel to the
            convolution.
    """
    if not 0 < split_ratio <= 1:
        raise ValueError(f'split_ratio must lie in (0, 1], got {split_ratio!r}')
    conv_channels = int(channels * split_ratio)
    if conv_channels == 0:
        raise ValueError(f'split_ratio={split_ratio!r} leaves no channel of {channels} to the '
                         f'convolution; it must be at least 1/{channels}')
    return conv_channels, channels - conv_channels


def norms_first(children: Iterator[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """Orders children for tools that fuse a batch norm into the convolution listed before it, as mmcv's fuse_conv_bn.

    The norms of PATConv follow other channels than those of the convolution
    beside them. Their order in checkpoints and optimizers stays.
    """
    return iter(sorted(children, key=lambda child: 'norm' not in child[0]))


@MODELS.register_module()
class PartialConv(nn.Module):
    """FasterNet's partial convolution, the convolved channels of every PATConv.

    A dense 3x3 convolution acts on the first ``split_channels(...)`` channels;
    all others pass through unchanged.

    Paper: `Run, Don't Walk <https://arxiv.org/abs/2303.03667>`_ and Eq. (1) of
    PartialNet, with the identity as attention.

    Args:
        channels: Channels of the input and of the output.
        split_ratio: Fraction of the channels that is convolved, in (0, 1].
            Defaults to 1/4.
        kernel_size: Odd kernel size. Defaults to 3.
    """

    def __init__(self, channels: int, split_ratio: float = 0.25, kernel_size: int = 3) -> None:
        super().__init__()
        self.split_sizes = split_channels(channels, split_ratio)
        conv_channels = self.split_sizes[0]
        self.conv = nn.Conv2d(
            conv_channels, conv_channels, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        convolved, rest = x.split(self.split_sizes, dim=1)
        return torch.cat((self.conv(convolved), rest), dim=1)


class _PartialAttention(nn.Module):
    """A 3x3 convolution of the first channels beside an attention of the others, or before an attention of all."""

    def __init__(self, channels: int, split_ratio: float, attend_all: bool) -> None:
        super().__init__()
        self.split_sizes = split_channels(channels, split_ratio)
        self.attend_all = attend_all
        self.attended_channels = channels if attend_all else self.split_sizes[1]
        self.conv = nn.Conv2d(self.split_sizes[0], self.split_sizes[0], 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        if not self.attended_channels:
            return self.conv(x)
        convolved, rest = x.split(self.split_sizes, dim=1)
        if self.attend_all:
            return self.attend(torch.cat((self.conv(convolved), rest), dim=1))
        return torch.cat((self.conv(convolved), self.attend(rest)), dim=1)

    def attend(self, x: Tensor) -> Tensor:
        """The attention, (B, C_attn, H, W) to the same."""
        raise NotImplementedError

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The children with the norms first, see :func:`norms_first`."""
        return norms_first(super().named_children())


@MODELS.register_module()
class PartialChannelAttention(_PartialAttention):
    """PAT_ch: 3x3 convolution beside Gaussian channel attention (Sec. 3.1).

    The first channels are convolved, the others are weighted by their gate and
    normalized. Token mixer of stages 1-3.

    Args:
        channels: Channels of the input and of the output.
        split_ratio: Fraction of the channels that is convolved, in (0, 1];
            at 1 the layer is a plain convolution. Defaults to 1/4.
        norm_cfg: Norm of the attended channels and of their gate. Defaults to
            ``dict(type='BN')``.
        gate: See :func:`build_gate`. Defaults to 'gaussian', the paper's.
        attend_all: Whether the attention covers all channels, the convolved
            ones after their convolution (Table 3, "F"). Defaults to False.
    """

    def __init__(self,
                 channels: int,
                 split_ratio: float = 0.25,
                 norm_cfg: dict = dict(type='BN'),
                 gate: str | dict = 'gaussian',
                 attend_all: bool = False) -> None:
        super().__init__(channels, split_ratio, attend_all)
        self.gate: nn.Module | None = None
        self.norm: nn.Module | None = None
        if self.attended_channels:
            self.gate = build_gate(gate, self.attended_channels, norm_cfg)
            self.norm = build_norm_layer(norm_cfg, self.attended_channels)[1]

    def attend(self, x: Tensor) -> Tensor:
        """Channel attention, (B, C_attn, H, W) to the same."""
        return normalize(self.norm, x * self.gate(x))

    @property
    def attends_beside(self) -> bool:
        """Whether the output is :meth:`join` of what :meth:`convolve_and_gate` returns."""
        return self.norm is not None and not self.attend_all

    def convolve_and_gate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The convolved channels, the attended channels, and the gate of the latter, (B, C_attn, 1, 1)."""
        convolved, attended = x.split(self.split_sizes, dim=1)
        return self.conv(convolved), attended, self.gate(attended)

    def join(self, normalize: Normalize, convolved: Tensor, attended: Tensor, gate: Tensor) -> Tensor:
        """The output, (B, C, H, W)."""
        return torch.cat((convolved, normalize(self.norm, attended * gate)), dim=1)

    def merged(self) -> tuple[nn.Module, Affine | None]:
        """The inference form, without the last norm, and the scale and shift of the output that it leaves out."""
        return (self, None) if self.norm is None else (MergedChannelAttention(self), self.output_affine())

    def output_affine(self, training: bool = False) -> Affine:
        """The last norm as scale and shift of all channels, see :func:`norm_affine`."""
        scale, shift = norm_affine(self.norm, 'the norm of PartialChannelAttention', self.attended_channels,
                                   self.conv.weight.device, training)
        before = scale.new_zeros(0 if self.attend_all else self.split_sizes[0])
        return torch.cat((before + 1, scale)), torch.cat((before, shift))


class MergedChannelAttention(nn.Module):
    """The inference form of PAT_ch: the layer that follows has taken over its norm.

    Args:
        mixer: The trained layer, whose convolution and, where it has no other
            form, gate are shared.
    """

    def __init__(self, mixer: PartialChannelAttention) -> None:
        super().__init__()
        self.split_sizes, self.attend_all = mixer.split_sizes, mixer.attend_all
        self.conv = mixer.conv
        self.gate = merged_gate(mixer.gate)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        convolved, attended = x.split(self.split_sizes, dim=1)
        if self.attend_all:
            x = torch.cat((self.conv(convolved), attended), dim=1)
            return x * self.gate(x)
        # With the channels last: torch.export does not follow other strides of a slice in symbolic sizes.
        gate = self.gate(attended).permute(0, 2, 3, 1)
        convolved = self.conv(convolved).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return torch.cat((convolved, attended.permute(0, 2, 3, 1) * gate), dim=3).permute(0, 3, 1, 2)


def merged_gate(gate: nn.Module) -> nn.Module:
    """The inference form of a gate, which is the gate itself where it has no method ``merged``."""
    return gate.merged() if hasattr(gate, 'merged') else gate


class _SelfAttention(nn.Module):
    """LayerNorm over channels, then multi-head self-attention over pixels with a relative position bias."""

    def _add_attention(self, channels: int, num_heads: int, attn_drop_rate: float, proj_drop_rate: float) -> None:
        self.num_heads = next(n for n in range(num_heads, 0, -1) if channels % n == 0)
        self.attn_drop_rate = attn_drop_rate
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.position_bias = RelativePositionBias(self.num_heads)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over all pixels, (B, C_attn, H, W) to the same."""
        batch, channels, height, width = x.shape
        tokens = self.qkv(self.norm(x.flatten(2).transpose(1, 2)))
        query, key, value = tokens.reshape(
            batch, height * width, 3, self.num_heads, channels // self.num_heads).permute(2, 0, 3, 1, 4)
        # The bias may be float32 beside half-precision queries (autocast): the mask must match them.
        bias = self.position_bias(height, width).to(query.dtype)
        tokens = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=self.attn_drop_rate if self.training else 0.)
        tokens = self.proj_drop(self.proj(tokens.transpose(1, 2).reshape(batch, height * width, channels)))
        return tokens.transpose(1, 2).reshape(batch, channels, height, width)


class SelfAttention(_SelfAttention):
    """The attention of PAT_sf alone, which PATConv2d takes by ``gate='self'``.

    Args:
        channels: Channels of the input and of the output.
        num_heads: Attention heads, or the largest smaller number that divides
            the channels. Defaults to 6.
    """

    def __init__(self, channels: int, num_heads: int = 6) -> None:
        super().__init__()
        self._add_attention(channels, num_heads, 0., 0.)

    forward = _SelfAttention.attend


@MODELS.register_module()
class PartialSelfAttention(_PartialAttention, _SelfAttention):
    """PAT_sf: 3x3 convolution beside self-attention (Sec. 3.1).

    The first channels are convolved, the others go through LayerNorm and
    multi-head self-attention with a :class:`RelativePositionBias`. Token mixer
    of stage 4.

    Args:
        channels: Channels of the input and of the output.
        num_heads: Attention heads. Where a split ratio other than the default
            leaves a width that they do not divide, the largest smaller number
            that does is taken.
        split_ratio: Fraction of the channels that is convolved, in (0, 1];
            at 1 the layer is a plain convolution. Defaults to 1/4.
        attn_drop_rate: Dropout of the attention weights. Defaults to 0.
        proj_drop_rate: Dropout after the output projection. Defaults to 0.
        attend_all: Whether the attention covers all channels, the convolved
            ones after their convolution (Table 3, "F"). Defaults to False.
    """

    #: The block gives this mixer a residual of its own (Fig. 3 (d)).
    own_residual = True
    attend = _SelfAttention.attend

    def __init__(self,
                 channels: int,
                 num_heads: int,
                 split_ratio: float = 0.25,
                 attn_drop_rate: float = 0.,
                 proj_drop_rate: float = 0.,
                 attend_all: bool = False) -> None:
        super().__init__(channels, split_ratio, attend_all)
        if self.attended_channels:
            self._add_attention(self.attended_channels, num_heads, attn_drop_rate, proj_drop_rate)


class PartialSpatialAttention(nn.Module):
    """PAT_sp: 1x1 convolution beside spatial attention (Sec. 3.1).

    The first half of the channels is weighted at each pixel by one
    Hard-Sigmoid gate and normalized; the other half is normalized and mixed by
    a 1x1 convolution. It follows the MLP. At inference all of it up to the
    gate is folded into the MLP's last convolution.

    Args:
        channels: Channels of the input and of the output.
        norm_cfg: Norm of both halves. Defaults to ``dict(type='BN')``.
        attend_all: Whether the gate is computed from all channels and weights
            them all (Table 3, "F"); the norms and the 1x1 convolution remain
            each half's own. Defaults to False.
    """

    #: Whether the backward pass computes the norms and the gated product again instead of keeping their outputs.
    recompute = False

    def __init__(self, channels: int, norm_cfg: dict = dict(type='BN'), attend_all: bool = False) -> None:
        super().__init__()
        self.split_sizes = (channels // 2, channels - channels // 2)
        first, rest = self.split_sizes
        self.attend_all = attend_all
        self.logit_conv = nn.Conv2d(channels if attend_all else first, 1, 1, bias=False)
        self.attended_norm = build_norm_layer(norm_cfg, first)[1]
        self.rest_norm = build_norm_layer(norm_cfg, rest)[1]
        self.rest_conv = nn.Conv2d(rest, rest, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        attended, rest = x.split(self.split_sizes, dim=1)
        gate = hard_sigmoid(self.logit_conv(x if self.attend_all else attended))
        if self.attend_all:
            rest = rest * gate
        attended = recomputed(
            self, lambda normalize, x, gate: normalize(self.attended_norm, x * gate), attended, gate)
        rest = recomputed(self, lambda normalize, x: self.rest_conv(normalize(self.rest_norm, x)), rest)
        return torch.cat((attended, rest), dim=1)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The children with the norms first, see :func:`norms_first`."""
        return norms_first(super().named_children())

    def fold_into(self, weight: Tensor, bias: Tensor, scale: Tensor | None,
                  training: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Folds this layer into the 1x1 convolution before it (appendix, Fig. 1 (d)).

        Up to the gate all of PAT_sp is linear, so one convolution to C + 1
        channels gives the scaled attended half, the finished other half and
        the logit.

        Args:
            weight: (C, C_in, 1, 1), of the convolution before, in the dtype
                of the algebra.
            bias: (C, ).
            scale: (C, ), the layer scale that follows this layer, or None.
            training: Whether it is for one step of training. Defaults to
                False.

        Returns:
            Weight (C + 1, C_in, 1, 1) and bias (C + 1, ) of the convolution,
            and the shift of the attended channels, added after the gate.
        """
        require_no_hooks(self, 'PartialSpatialAttention')
        first, rest = self.split_sizes
        names = ('attended_norm', 'rest_norm', 'logit_conv', 'rest_conv')
        attended_name, rest_name, logit_name, mix_name = (f'{name} of PartialSpatialAttention' for name in names)
        attended_scale, shift = norm_affine(self.attended_norm, attended_name, first, weight.device, training)
        rest_scale, rest_shift = norm_affine(self.rest_norm, rest_name, rest, weight.device, training)
        logit_weight, logit_bias = weight_and_bias(require_plain(self.logit_conv, logit_name), training)
        mix, mix_bias = weight_and_bias(require_plain(self.rest_conv, mix_name), training)
        mix, logit_weight, weight = mix.flatten(1), logit_weight.flatten(1), weight.flatten(1)
        rest_shift = mix @ rest_shift + mix_bias
        mix = mix * rest_scale
        if scale is not None:
            attended_scale, shift = attended_scale * scale[:first], shift * scale[:first]
            mix, rest_shift = mix * scale[first:, None], rest_shift * scale[first:]
        seen = len(weight) if self.attend_all else first
        folded = torch.cat((weight[:first] * attended_scale[:, None], mix @ weight[first:],
                            logit_weight @ weight[:seen]))
        rest_bias = mix @ bias[first:]
        if self.attend_all:
            # The gate weights a whole pixel, so it may be applied after the 1x1 convolution, but before its shift.
            shift = torch.cat((shift, rest_shift))
        else:
            rest_bias = rest_bias + rest_shift
        bias = torch.cat((bias[:first] * attended_scale, rest_bias, logit_weight @ bias[:seen] + logit_bias))
        return folded[:, :, None, None], bias, shift


class MergedSpatialAttention(nn.Module):
    """The inference form of PAT_sp: what is left after :meth:`PartialSpatialAttention.fold_into`.

    Args:
        logit_conv: From the hidden layer of the MLP to the logit of the gate.
        shift: (C_attended, ).
    """

    def __init__(self, logit_conv: nn.Conv2d, shift: Tensor) -> None:
        super().__init__()
        self.logit_conv = logit_conv
        self.shift = nn.Parameter(shift.detach().view(1, -1, 1, 1).to(logit_conv.weight.dtype))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Maps (B, C, H, W), and the hidden layer that it comes from, (B, 2C, H, W), to (B, C, H, W)."""
        # With the channels last: torch.export does not follow other strides of a slice in symbolic sizes.
        pixels, logit = x.permute(0, 2, 3, 1), self.logit_conv(hidden).permute(0, 2, 3, 1)
        attended_channels = self.shift.shape[1]
        attended, rest = pixels.split((attended_channels, x.shape[1] - attended_channels), dim=3)
        # Under autocast a float32 shift would make the whole feature map float32.
        attended = torch.addcmul(self.shift.flatten().to(x.dtype), attended, F.hardsigmoid(logit))
        return torch.cat((attended, rest), dim=3).permute(0, 3, 1, 2)
