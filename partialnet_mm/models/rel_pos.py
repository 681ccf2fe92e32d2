# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Relative position bias: one learned scalar for each head and bucket of distance."""
import math

import torch
from torch import Tensor, nn


class RelativePositionBias(nn.Module):
    """iRPE's "Euclidean" bias on keys, as PAT_sf adds it to its logits.

    Two positions share a bucket when their rounded Euclidean distance is the
    same; far distances share buckets logarithmically: the bucket is the
    distance up to ``alpha``, then
    ``round(alpha + ln(d / alpha) / ln(gamma / alpha) * (beta - alpha))``,
    capped at ``beta``.

    Paper: `Rethinking and Improving Relative Position Encoding for Vision
    Transformer <https://arxiv.org/abs/2107.14222>`_; Sec. 3.1 of PartialNet,
    PAT_sf.

    The buckets are computed from the size of the map at each call: nothing is
    kept, so maps of any size may follow each other.

    Args:
        num_heads (int): Attention heads.
        alpha (int): Distance up to which every one has a bucket of its own.
            Defaults to 20.
        beta (int): Index of the last bucket. Defaults to 40.
        gamma (int): Distance at which the last bucket is reached. Defaults to
            160.
    """

    def __init__(self, num_heads: int, alpha: int = 20, beta: int = 40, gamma: int = 160) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.table = nn.Parameter(torch.zeros(num_heads, beta + 1))

    def buckets(self, height: int, width: int) -> Tensor:
        """Bucket of each pair of positions of a map.

        Args:
            height (int): Rows of the map.
            width (int): Columns of the map.

        Returns:
            Tensor: int64, (H * W, H * W), in row-major order of the positions.
        """
        device = self.table.device
        rows = torch.arange(height, device=device)
        columns = torch.arange(width, device=device)
        # The distance depends on the two offsets alone, so the logarithm is
        # taken H * W times, not (H * W) ** 2 times.
        distance = torch.sqrt((rows[:, None] ** 2 + columns[None, :] ** 2).float()).round()
        scale = (self.beta - self.alpha) / math.log(self.gamma / self.alpha)
        far = self.alpha + torch.log(distance.clamp(min=1) / self.alpha) * scale
        by_offset = torch.where(distance <= self.alpha, distance, far.round().clamp(max=self.beta)).long()
        row_offset = (rows[:, None] - rows[None, :]).abs()
        column_offset = (columns[:, None] - columns[None, :]).abs()
        length = height * width
        return by_offset[row_offset[:, None, :, None], column_offset[None, :, None, :]].reshape(length, length)

    def forward(self, height: int, width: int) -> Tensor:
        """Bias to add to the attention logits, (1, heads, H * W, H * W)."""
        return self.table[:, self.buckets(height, width)].unsqueeze(0)
