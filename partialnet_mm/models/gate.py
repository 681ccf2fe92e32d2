# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The gate of PAT_ch, computed from each channel's mean and deviation."""
import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from .fusion import fold_norm_after
from .norm import normalize


class GaussianGate(nn.Module):
    """Gaussian channel attention (Sec. 3.1 of the paper, PAT_ch).

    Each channel is summed up by its mean and its unbiased standard deviation
    over the map; a convolution of kernel (1, 2) mixes both over all channels;
    the result is normalized over the batch and squashed by a Hard-Sigmoid.

    Args:
        channels (int): Channels of the map.
        norm_cfg (dict): Norm of the gate. Defaults to ``dict(type='BN')``.
        deploy (bool): Whether to build the merged form, in which the norm is
            part of the convolution. Defaults to False.
    """

    def __init__(self, channels: int, norm_cfg: dict = dict(type='BN'), deploy: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (1, 2), bias=deploy)
        self.norm = None if deploy else build_norm_layer(norm_cfg, channels)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to gates (B, C, 1, 1) in [0, 1]."""
        batch, channels, height, width = x.shape
        # A map of one element has no deviation: with the usual correction it would be NaN.
        std, mean = torch.std_mean(x, dim=(2, 3), correction=int(height * width > 1))
        statistics = torch.stack((mean, std), dim=-1)
        # The kernel covers its whole input, so the convolution is a matrix product.
        logits = F.linear(statistics.flatten(1), self.conv.weight.flatten(1), self.conv.bias)
        logits = logits.view(batch, channels, 1, 1)
        if self.norm is not None:
            logits = normalize(self.norm, logits)
        return F.hardsigmoid(logits)

    def switch_to_deploy(self) -> None:
        """Merges the norm into the convolution; does nothing the second time."""
        if self.norm is not None:
            self.conv = fold_norm_after(self.conv, self.norm, 'the norm of GaussianGate')
            self.norm = None
