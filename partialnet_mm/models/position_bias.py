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

    The buckets are computed from the size of the feature map, so that feature
    maps of any size may follow each other. Nothing is kept between calls; only
    the buckets of 7 x 7 pixels, an image of 224 x 224, are made in advance.

    Args:
        num_heads: Attention heads.
        alpha: Distance up to which every one has a bucket of its own.
            Defaults to 20.
        beta: Index of the last bucket. Defaults to 40.
        gamma: Distance at which the last bucket is reached. Defaults to 160.
    """

    usual_size = (7, 7)

    def __init__(self, num_heads: int, alpha: int = 20, beta: int = 40, gamma: int = 160) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_heads, beta + 1))
        # Bucket k begins at the square of the distance here; rounding takes in distances that are half a step nearer.
        far_scale = (beta - alpha) / math.log(gamma / alpha)
        buckets = [d if d <= alpha else min(beta, round(alpha + math.log(d / alpha) * far_scale))
                   for d in range(gamma + 1)]
        nearest = [next(d for d, bucket in enumerate(buckets) if bucket >= k) for k in range(1, beta + 1)]
        self.first_squares = tuple(d * d - d + 1 for d in nearest)
        self.register_buffer('usual_buckets', self.compute_buckets(*self.usual_size), persistent=False)

    def _apply(self, *args: object, **kwargs: object) -> 'RelativePositionBias':
        # Made again, because Module.to_empty leaves memory without values.
        super()._apply(*args, **kwargs)
        self.usual_buckets = self.compute_buckets(*self.usual_size)
        return self

    def buckets(self, height: int, width: int) -> Tensor:
        """Bucket of each pair of positions of a feature map.

        Args:
            height: Rows of the feature map.
            width: Columns of the feature map.

        Returns:
            int64, (H * W, H * W), in row-major order of the positions.
        """
        # An exporter that follows changing sizes has no ints here.
        if isinstance(height, int) and (height, width) == self.usual_size:
            return self.usual_buckets
        return self.compute_buckets(height, width)

    def compute_buckets(self, height: int, width: int) -> Tensor:
        """As :meth:`buckets`, which has those of the usual size already."""
        device = self.table.device
        rows = torch.arange(height, device=device)
        columns = torch.arange(width, device=device)
        squares = (rows * rows)[:, None] + columns * columns
        by_offset = (squares[:, :, None] >= torch.tensor(self.first_squares, device=device)).sum(-1)
        row_offsets, column_offsets = (rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()
        # One step, whose shapes compilers and exporters follow for feature maps of any size.
        return by_offset[row_offsets[:, None, :, None], column_offsets[:, None]].reshape(height * width, -1)

    def forward(self, height: int, width: int) -> Tensor:
        """Bias to add to the attention logits, (1, heads, H * W, H * W)."""
        length = height * width
        return self.table.index_select(1, self.buckets(height, width).flatten()).view(1, -1, length, length)
