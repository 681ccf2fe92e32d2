# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The token mixers of a stage by name: the paper's, and those of its ablations.

A token mixer maps (B, C, H, W) to itself. Mixers are registered: any class
with an argument ``channels`` is a mixer of ``token_mixers=dict(type=...)``.
"""
import inspect

from mmengine.registry import MODELS
from torch import nn

from ._arguments import build_with, find_type
from .dpconv import DPConv

#: Short names, each for a config of a registered layer.
TOKEN_MIXERS: dict[str, dict] = dict(
    # PAT_ch, partial convolution beside channel attention
    pat_ch=dict(type='PartialChannelAttention'),
    # PAT_sf, partial convolution beside self-attention, with a residual of its own
    pat_sf=dict(type='PartialSelfAttention'),
    # partial convolution, then attention over all channels (Table 3)
    full_ch=dict(type='PartialChannelAttention', attend_all=True),
    full_sf=dict(type='PartialSelfAttention', attend_all=True),
    # partial convolution alone, FasterNet's mixer (Tables 4 and 13)
    partial_conv=dict(type='PartialConv'),
    # 3x3 convolution of all channels, dense or depthwise (Table 6)
    conv=dict(type='DenseMixer'),
    depthwise_conv=dict(type='DenseMixer', depthwise=True),
    # partial convolution that learns its split ratio, alone and beside channel attention (Sec. 3.2)
    dpconv=dict(type='DPConvMixer'),
    dpconv_ch=dict(type='DPConvChannelAttention'))


@MODELS.register_module(name='DenseMixer')
def build_dense_mixer(channels: int, depthwise: bool = False) -> nn.Conv2d:
    """A 3x3 convolution of all channels.

    Args:
        channels: Channels of the input and of the output.
        depthwise: Whether each channel is convolved by itself. Defaults to
            False.

    Returns:
        The convolution, without bias.
    """
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels if depthwise else 1, bias=False)


@MODELS.register_module(name='DPConvMixer')
def build_dpconv_mixer(channels: int, split_ratio: float = 0.25) -> DPConv:
    """A 3x3 :class:`DPConv`.

    Args:
        channels: Channels of the input and of the output, even.
        split_ratio: Ratio to start at, 1 / 2^z. Defaults to 1/4.

    Returns:
        The layer, without bias.
    """
    return DPConv(channels, channels, 3, padding=1, bias=False, split_ratio=split_ratio)


def mixer_config(mixer: str | dict) -> dict:
    """The config of a token mixer.

    Args:
        mixer: A short name of :data:`TOKEN_MIXERS`, or a config, which is
            returned as it is.

    Returns:
        A dict with ``type``.

    Raises:
        ValueError: If the short name is unknown, or the config has no type.
    """
    if isinstance(mixer, str) and mixer in TOKEN_MIXERS:
        return TOKEN_MIXERS[mixer]
    if not isinstance(mixer, dict) or 'type' not in mixer:
        raise ValueError(f'token_mixers must be among {sorted(TOKEN_MIXERS)} or dict(type=...), got {mixer!r}')
    return mixer


def takes_gate(mixer: str | dict) -> bool:
    """Whether the gate of a token mixer can be chosen."""
    return 'gate' in inspect.signature(find_type(mixer_config(mixer)['type'])).parameters


def build_token_mixer(mixer: str | dict, channels: int, **options: object) -> nn.Module:
    """Builds a token mixer.

    Args:
        mixer: A short name of :data:`TOKEN_MIXERS`, or the config of a
            registered layer, to which ``channels`` is added.
        channels: Channels of the input and of the output.
        **options: What the mixer's constructor may take as well and its config
            does not set: ``num_heads``, ``split_ratio``, ``norm_cfg``,
            ``gate``, ``attn_drop_rate``, ``proj_drop_rate``.

    Returns:
        From (B, C, H, W) to (B, C, H, W).

    Raises:
        ValueError: If there is no such short name, or the mixer cannot have
            the ratio.
        KeyError: If no such type is registered.
    """
    return build_with(mixer_config(mixer), dict(channels=channels), options)
