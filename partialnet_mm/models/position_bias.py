# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Relative position bias: one learned scalar for each head and bucket of distance."""
import math

import torch
from torch import Tensor, nn

from .execution import runs_on_cpu


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

    The buckets are computed from the size of the map, and maps of any size may
    follow each other. At inference on a CPU those of the last size are kept,
    where that is as small as in classification.

    Args:
        num_heads: Attention heads.
        alpha: Distance up to which every one has a bucket of its own.
            Defaults to 20.
        beta: Index of the last bucket. Defaults to 40.
        gamma: Distance at which the last bucket is reached. Defaults to
            160.
    """

    #: Places of the largest map whose buckets are kept: half a MiB of them.
    max_kept_length = 256

    def __init__(self, num_heads: int, alpha: int = 20, beta: int = 40, gamma: int = 160) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_heads, beta + 1))
        self._kept: tuple[tuple[int, int] | None, Tensor | None] = (None, None)
        # Bucket k begins at the square of the distance here; rounding takes in what is half a step nearer.
        far_scale = (beta - alpha) / math.log(gamma / alpha)
        buckets = [d if d <= alpha else min(beta, round(alpha + math.log(d / alpha) * far_scale))
                   for d in range(gamma + 1)]
        nearest = [next(d for d, bucket in enumerate(buckets) if bucket >= k) for k in range(1, beta + 1)]
        self.first_squares = tuple(d * d - d + 1 for d in nearest)

    def buckets(self, height: int, width: int) -> Tensor:
        """Bucket of each pair of positions of a map.

        Args:
            height: Rows of the map.
            width: Columns of the map.

        Returns:
            Tensor: int64, (H * W, H * W), in row-major order of the positions.
        """
        device = self.table.device
        rows = torch.arange(height, device=device)
        columns = torch.arange(width, device=device)
        squares = (rows * rows)[:, None] + columns * columns
        by_offset = (squares[:, :, None] >= torch.tensor(self.first_squares, device=device)).sum(-1)
        row_offsets, column_offsets = (rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()
        length = height * width
        if not runs_on_cpu(self.table):
            # One step, whose shapes compilers and exporters follow for maps of any size.
            return by_offset[row_offsets[:, None, :, None], column_offsets[:, None]].reshape(length, length)
        # The bucket depends on the offsets alone, so they are handed out: to pairs of columns first, as long as there
        # are few, then by whole rows.
        by_columns = by_offset.index_select(1, column_offsets.flatten())
        by_pair = by_columns.index_select(0, row_offsets.flatten())
        return by_pair.view(height, height, width, width).transpose(1, 2).reshape(length, length)

    def forward(self, height: int, width: int) -> Tensor:
        """Bias to add to the attention logits, (1, heads, H * W, H * W)."""
        length = height * width
        if runs_on_cpu(self.table) and length <= self.max_kept_length:
            kept = self._kept  # read once: another thread may be at another size
            if kept[0] != (height, width):
                kept = self._kept = ((height, width), self.buckets(height, width).flatten())
            buckets = kept[1]
        else:
            buckets = self.buckets(height, width).flatten()
        return self.table.index_select(1, buckets).view(1, -1, length, length)
