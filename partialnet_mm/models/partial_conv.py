# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Partial convolution: a convolution on the first channels only."""
import torch
from torch import Tensor, nn


class PartialConv(nn.Module):
    """FasterNet's partial convolution, the convolved part of every PATConv.

    A dense 3x3 convolution acts on the first ``split_channels(...)`` channels;
    all others pass through unchanged.

    Paper: `Run, Don't Walk <https://arxiv.org/abs/2303.03667>`_ and Eq. (1) of
    PartialNet, with the identity in the place of the attention.

    Args:
        channels (int): Channels of the input and of the output.
        split_ratio (float): Part of the channels that is convolved, in
            (0, 1]. Defaults to 1/4.
        kernel_size (int): Odd kernel size. Defaults to 3.
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


def split_channels(channels: int, split_ratio: float) -> 'tuple[int, int]':
    """Divides a width into the convolved and the attended part.

    Args:
        channels (int): Channels of the map.
        split_ratio (float): Part of the channels that is convolved
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
