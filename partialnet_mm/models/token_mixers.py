# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The token mixers of a stage by name: the paper's three, and what its ablations put in their place."""
from torch import nn

from .dpconv.channel_attention import DPConvChannelAttention
from .dpconv.layer import DPConv
from .patconv import PartialChannelAttention, PartialConv, PartialSelfAttention

#: Name and meaning of each token mixer.
TOKEN_MIXERS = dict(
    pat_ch='PAT_ch, partial convolution beside channel attention',
    pat_sf='PAT_sf, partial convolution beside self-attention, in a residual of its own',
    full_ch='partial convolution, then channel attention over all channels (Table 3)',
    full_sf='partial convolution, then self-attention over all channels (Table 3)',
    partial_conv="partial convolution alone, FasterNet's mixer (Tables 4 and 13)",
    conv='3x3 convolution of all channels (Table 6)',
    depthwise_conv='depthwise 3x3 convolution (Table 6)',
    dpconv='DPConv, partial convolution that learns its split ratio (Sec. 3.2)',
    dpconv_ch='PAT_ch that learns its split ratio')
#: Those whose split ratio is learned.
SEARCHED = ('dpconv', 'dpconv_ch')
#: Those whose gate can be chosen.
CHANNEL_ATTENTIONS = ('pat_ch', 'full_ch')
#: Those that have a residual of their own, in :class:`PartialNetBlockV2`.
SELF_ATTENTIONS = ('pat_sf', 'full_sf')


def build_token_mixer(name: str,
                      channels: int,
                      num_heads: int,
                      split_ratio: float = 0.25,
                      norm_cfg: dict = dict(type='BN'),
                      gate: str = 'gaussian',
                      attn_drop_rate: float = 0.,
                      proj_drop_rate: float = 0.,
                      deploy: bool = False) -> nn.Module:
    """Builds a token mixer.

    Args:
        name: One of :data:`TOKEN_MIXERS`.
        channels: Channels of the input and of the output.
        num_heads: Attention heads of the self-attentions.
        split_ratio: Part of the channels that is convolved, for all
            but 'conv' and 'depthwise_conv'; where it is learned, what it starts
            at, 1 / 2^z. Defaults to 1/4.
        norm_cfg: Norm of the channel attentions. Defaults to
            ``dict(type='BN')``.
        gate: Gate of the channel attentions. Defaults to 'gaussian'.
        attn_drop_rate: See :class:`PartialSelfAttention`. Defaults
            to 0.
        proj_drop_rate: See :class:`PartialSelfAttention`. Defaults
            to 0.
        deploy: Whether to build the merged form. Defaults to False.

    Returns:
        nn.Module: From (B, C, H, W) to (B, C, H, W).

    Raises:
        ValueError: If there is no such mixer or gate, or the mixer cannot
            have the ratio.
    """
    if name not in TOKEN_MIXERS:
        raise ValueError(f'token_mixers must be among {sorted(TOKEN_MIXERS)}, got {name!r}')
    if name == 'dpconv':
        return DPConv(channels, channels, 3, padding=1, bias=False, split_ratio=split_ratio)
    if name == 'dpconv_ch':
        return DPConvChannelAttention(channels, split_ratio, norm_cfg)
    if name in CHANNEL_ATTENTIONS:
        return PartialChannelAttention(channels, split_ratio, norm_cfg, gate, name == 'full_ch', deploy)
    if name in SELF_ATTENTIONS:
        return PartialSelfAttention(channels, num_heads, split_ratio, attn_drop_rate, proj_drop_rate,
                                    name == 'full_sf')
    if name == 'partial_conv':
        return PartialConv(channels, split_ratio)
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels if name == 'depthwise_conv' else 1, bias=False)
