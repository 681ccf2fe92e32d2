# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Partial attention convolution: PAT_ch, PAT_sp and PAT_sf.

Each divides the channels of its input, lets a convolution work on one part and
an attention on the other, and joins both (Eq. (1) of the paper).
"""

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from ._folding import conv_like, norm_affine
from ._layers import normalize
from .gates import build_gate
from .position_bias import RelativePositionBias


def split_channels(channels: int, split_ratio: float) -> tuple[int, int]:
    """Divides a width into the convolved and the attended part.

    Args:
        channels: Channels of the map.
        split_ratio: Part of the channels that is convolved
            (``r_p`` of the paper), in (0, 1].

    Returns:
        tuple[int, int]: Channels of the convolved part, which come first, and
        of the attended part; the latter is 0 at a ratio of 1.

    Raises:
        ValueError: If the ratio is outside (0, 1] or leaves the convolution
            without a channel.
    """
    if not 0 < split_ratio <= 1:
        raise ValueError(f'split_ratio must lie in (0, 1], got {split_ratio!r}')
    conv_channels = int(channels * split_ratio)
    if conv_channels == 0:
        raise ValueError(f'split_ratio={split_ratio!r} leaves no channel of {channels} to the '
                         f'convolution; it must be at least 1/{channels}')
    return conv_channels, channels - conv_channels


class PartialConv(nn.Module):
    """FasterNet's partial convolution, the convolved part of every PATConv.

    A dense 3x3 convolution acts on the first ``split_channels(...)`` channels;
    all others pass through unchanged.

    Paper: `Run, Don't Walk <https://arxiv.org/abs/2303.03667>`_ and Eq. (1) of
    PartialNet, with the identity in the place of the attention.

    Args:
        channels: Channels of the input and of the output.
        split_ratio: Part of the channels that is convolved, in
            (0, 1]. Defaults to 1/4.
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
        conv_part, rest = x.split(self.split_sizes, dim=1)
        return torch.cat((self.conv(conv_part), rest), dim=1)


class PartialChannelAttention(nn.Module):
    """PAT_ch: 3x3 convolution beside Gaussian channel attention (Sec. 3.1).

    The first part of the channels is convolved, the other one is weighted by
    its gate and normalized. Token mixer of stages 1-3.

    Args:
        channels: Channels of the input and of the output.
        split_ratio: Part of the channels that is convolved, in (0, 1];
            at 1 the layer is a plain convolution. Defaults to 1/4.
        norm_cfg: Norm of the attended part and of its gate. Defaults to
            ``dict(type='BN')``.
        gate: 'gaussian' (the paper's), 'srm' or 'se' (Table 12).
            Defaults to 'gaussian'.
        attend_all: Whether the attention covers all channels, the
            convolved ones after their convolution (Table 3, "F"). Defaults to
            False.
        deploy: Whether to build the merged form. It leaves the norm of
            the attended part to the layer that follows, see
            :meth:`switch_to_deploy`. Defaults to False.
    """

    def __init__(self,
                 channels: int,
                 split_ratio: float = 0.25,
                 norm_cfg: dict = dict(type='BN'),
                 gate: str = 'gaussian',
                 attend_all: bool = False,
                 deploy: bool = False) -> None:
        super().__init__()
        self.split_sizes = split_channels(channels, split_ratio)
        conv_channels, attended_channels = self.split_sizes
        self.attend_all = attend_all
        self.attends_part = attended_channels > 0 and not attend_all
        if attend_all:
            attended_channels = channels
        self.conv = nn.Conv2d(conv_channels, conv_channels, 3, padding=1, bias=False)
        self.gate: nn.Module | None = None
        self.norm: nn.Module | None = None
        if attended_channels:
            self.gate = build_gate(gate, attended_channels, norm_cfg, deploy)
            if not deploy:
                self.norm = build_norm_layer(norm_cfg, attended_channels)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        if self.gate is None:
            return self.conv(x)
        conv_part, rest = x.split(self.split_sizes, dim=1)
        if self.attend_all:
            return self._attend(torch.cat((self.conv(conv_part), rest), dim=1))
        return torch.cat((self.conv(conv_part), self._attend(rest)), dim=1)

    def _attend(self, x: Tensor) -> Tensor:
        x = x * self.gate(x)
        return x if self.norm is None else normalize(self.norm, x)

    def output_affine(self) -> 'tuple[Tensor, Tensor] | None':
        """The scale and shift of the output that the merged form leaves out.

        Returns:
            tuple[Tensor, Tensor] | None: float64, (C,) each, 1 and 0 for the
            convolved part; None when there is nothing to take over.
        """
        if self.norm is None:
            return None
        scale, shift = norm_affine(self.norm, 'the norm of PartialChannelAttention')
        conv_part = scale.new_zeros(0 if self.attend_all else self.split_sizes[0])
        return torch.cat((conv_part + 1, scale)), torch.cat((conv_part, shift))

    def switch_to_deploy(self) -> None:
        """Merges the gate's norm and drops the output norm.

        The caller must have put :meth:`output_affine` into the 1x1 convolution
        that follows, as :class:`PartialNetBlock` does: the merged layer alone
        does not compute the same as before.
        """
        if hasattr(self.gate, 'switch_to_deploy'):
            self.gate.switch_to_deploy()
        self.norm = None


class PartialSpatialAttention(nn.Module):
    """PAT_sp: 1x1 convolution beside spatial attention (Sec. 3.1).

    The first half of the channels is weighted at each place by one Hard-Sigmoid
    gate and normalized; the other half is normalized and mixed by a 1x1
    convolution. It follows the MLP, into whose last convolution all of it up to
    the gate merges at inference.

    Args:
        channels: Channels of the input and of the output.
        norm_cfg: Norm of both halves. Defaults to ``dict(type='BN')``.
        attend_all: Whether the gate is computed from all channels and
            weights them all (Table 3, "F"); the norms and the 1x1 convolution
            remain each half's own. Defaults to False.
        deploy: Whether to build the merged form: its input then has one
            channel more, the logit. Defaults to False.
    """

    def __init__(self,
                 channels: int,
                 norm_cfg: dict = dict(type='BN'),
                 attend_all: bool = False,
                 deploy: bool = False) -> None:
        super().__init__()
        first = channels // 2
        rest = channels - first
        self.split_sizes = (first, rest)
        self.attended_channels = channels if attend_all else first
        self.attends_part = not attend_all
        self.merged = deploy
        if deploy:
            self.shift = nn.Parameter(torch.zeros(1, self.attended_channels, 1, 1))
        else:
            self.logit_conv = nn.Conv2d(self.attended_channels, 1, 1, bias=False)
            self.attended_norm = build_norm_layer(norm_cfg, first)[1]
            self.rest_norm = build_norm_layer(norm_cfg, rest)[1]
            self.rest_conv = nn.Conv2d(rest, rest, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W), or (B, C + 1, H, W) when merged, to (B, C, H, W)."""
        if self.merged:
            shift = self.shift.to(x.dtype)  # under autocast a float32 one would make the whole map float32
            if self.attended_channels < sum(self.split_sizes):
                attended, rest, logit = x.split((*self.split_sizes, 1), dim=1)
                attended = torch.addcmul(shift, attended, F.hardsigmoid(logit))
                return torch.cat((attended, rest), dim=1)
            attended, logit = x.split((self.attended_channels, 1), dim=1)
            return torch.addcmul(shift, attended, F.hardsigmoid(logit))
        attended, rest = x.split(self.split_sizes, dim=1)
        if self.attended_channels < sum(self.split_sizes):
            attended = attended * F.hardsigmoid(self.logit_conv(attended))
        else:
            gate = F.hardsigmoid(self.logit_conv(x))
            attended, rest = attended * gate, rest * gate
        attended = normalize(self.attended_norm, attended)
        return torch.cat((attended, self.rest_conv(normalize(self.rest_norm, rest))), dim=1)

    @torch.no_grad()
    def merge_into(self, conv: nn.Conv2d, output_scale: Tensor | None = None) -> nn.Conv2d:
        """Merges this layer into the 1x1 convolution before it (appendix, Fig. 1 (d)).

        Up to the gate all of PAT_sp is linear, so one convolution to C + 1
        channels gives the scaled attended half, the finished other half and
        the logit. This layer is left with the gate and one shift.

        Args:
            conv: The 1x1 convolution whose output this layer gets,
                to C channels.
            output_scale: Layer scale that follows this
                layer, (C,), merged as well. Defaults to None.

        Returns:
            nn.Conv2d: The convolution to put in the place of ``conv``.
        """
        attended_scale, shift = norm_affine(self.attended_norm, 'attended_norm of PartialSpatialAttention')
        rest_scale, rest_shift = norm_affine(self.rest_norm, 'rest_norm of PartialSpatialAttention')
        rows = conv.weight.double().flatten(1)
        attended_rows, rest_rows = rows.split(self.split_sizes)
        logit_row = self.logit_conv.weight.double().flatten(1) @ rows[:self.attended_channels]
        rest_mix = self.rest_conv.weight.double().flatten(1)
        rest_bias = rest_mix @ rest_shift
        rest_rows = (rest_mix * rest_scale) @ rest_rows
        if output_scale is not None:
            attended_gain, rest_gain = output_scale.double().flatten().split(self.split_sizes)
            attended_scale, shift = attended_scale * attended_gain, shift * attended_gain
            rest_rows, rest_bias = rest_rows * rest_gain[:, None], rest_bias * rest_gain
        weight = torch.cat((attended_rows * attended_scale[:, None], rest_rows, logit_row))
        if self.attended_channels == len(rows):
            # One gate weights a whole place, so it may be applied after the 1x1 convolution, before its bias.
            shift, rest_bias = torch.cat((shift, rest_bias)), torch.zeros_like(rest_bias)
        bias = torch.cat((shift.new_zeros(self.split_sizes[0]), rest_bias, rest_bias.new_zeros(1)))
        merged = conv_like(conv, weight[:, :, None, None], bias)
        self.shift = nn.Parameter(shift.view(1, -1, 1, 1).to(conv.weight))
        self.merged = True
        del self.logit_conv, self.attended_norm, self.rest_norm, self.rest_conv
        return merged


class PartialSelfAttention(nn.Module):
    """PAT_sf: 3x3 convolution beside self-attention (Sec. 3.1).

    The first part of the channels is convolved; the other one goes through
    LayerNorm and multi-head self-attention with a
    :class:`RelativePositionBias`. Token mixer of stage 4.

    Args:
        channels: Channels of the input and of the output.
        num_heads: Attention heads. Where a split ratio other than the
            default leaves a width that they do not divide, the largest smaller
            number that does is taken.
        split_ratio: Part of the channels that is convolved, in (0, 1];
            at 1 the layer is a plain convolution. Defaults to 1/4.
        attn_drop_rate: Dropout of the attention weights. Defaults to 0.
        proj_drop_rate: Dropout after the output projection. Defaults
            to 0.
        attend_all: Whether the attention covers all channels, the
            convolved ones after their convolution (Table 3, "F"). Defaults to
            False.
    """

    def __init__(self,
                 channels: int,
                 num_heads: int,
                 split_ratio: float = 0.25,
                 attn_drop_rate: float = 0.,
                 proj_drop_rate: float = 0.,
                 attend_all: bool = False) -> None:
        super().__init__()
        self.split_sizes = split_channels(channels, split_ratio)
        conv_channels, attended_channels = self.split_sizes
        self.attend_all = attend_all
        if attend_all:
            attended_channels = channels
        self.conv = nn.Conv2d(conv_channels, conv_channels, 3, padding=1, bias=False)
        self.attends = attended_channels > 0
        self.attends_part = self.attends and not attend_all
        if self.attends:
            self.num_heads = next(n for n in range(num_heads, 0, -1) if attended_channels % n == 0)
            self.attn_drop_rate = attn_drop_rate
            self.norm = nn.LayerNorm(attended_channels, eps=1e-6)
            self.qkv = nn.Linear(attended_channels, 3 * attended_channels, bias=False)
            self.position_bias = RelativePositionBias(self.num_heads)
            self.proj = nn.Linear(attended_channels, attended_channels)
            self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        if not self.attends:
            return self.conv(x)
        conv_part, rest = x.split(self.split_sizes, dim=1)
        if self.attend_all:
            return self.attend(torch.cat((self.conv(conv_part), rest), dim=1))
        return torch.cat((self.conv(conv_part), self.attend(rest)), dim=1)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over all places of the attended part, (B, C_attn, H, W) to the same."""
        batch, channels, height, width = x.shape
        tokens = self.attend_tokens(x.flatten(2).transpose(1, 2), height, width)
        return tokens.transpose(1, 2).reshape(batch, channels, height, width)

    def attend_tokens(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """The same with places before channels, (B, H * W, C_attn) to the same."""
        batch, places, channels = tokens.shape
        query, key, value = self.qkv(self.norm(tokens).contiguous()).view(
            batch, places, 3, self.num_heads, channels // self.num_heads).permute(2, 0, 3, 1, 4)
        # The bias may be float32 beside half-precision queries (autocast): the mask must match them.
        bias = self.position_bias(height, width).to(query.dtype)
        tokens = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=self.attn_drop_rate if self.training else 0.)
        return self.proj_drop(self.proj(tokens.transpose(1, 2).reshape(batch, places, channels)))
