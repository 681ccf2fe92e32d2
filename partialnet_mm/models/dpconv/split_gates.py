# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The gates by which DPConv learns a split ratio (Sec. 3.2 of the paper)."""
import torch
from torch import Tensor, nn

#: Channels of a feature map: a slice where they are adjacent, otherwise their indices.
Channels = slice | Tensor


class SplitGates(nn.Module):
    """The learnable split ratio of one layer.

    A width C = m * 2^K, m odd, has K real gates ``t``. Gate k is open, ``g_k = 1``, where ``t_k > 0``, and otherwise
    closed, ``g_k = 0``. A convolution of all channels uses the weights where the Kronecker product

        ``M = M_1 (x) ... (x) M_K (x) 1_{m x m}``, ``M_k = [[1, g_k], [g_k, g_k]]``

    is 1. It is the first block of the paper's ``U``, whose factors are ``[[1, g_k], [g_k, 1]]``: with z closed gates,
    ordered closed before open, ``U`` has ``G = 2^z`` blocks, and ``M`` keeps the first C / G channels, so that the
    split ratio is 1 / G. Every entry of ``M`` is linear in every gate. Hence the straight-through gradient of a gate
    is, to first order in ``M``, the change that opening or closing it makes.

    The paper has m = 1; with m every variant of PartialNet can be searched.

    Args:
        channels: Width of the layer, even.
        split_ratio: Ratio to start at, 1 / 2^z for a z from 0 to K. Defaults to 1/4.

    Raises:
        ValueError: If the width is odd, or has no such ratio.
    """

    #: Magnitude of the gates next to the first split, and its growth towards the ends. The gates next to the split may
    #: change without leaving the legal order, so they are the nearest to a change.
    nearest, growth = 0.2, 0.7

    def __init__(self, channels: int, split_ratio: float = 0.25) -> None:
        super().__init__()
        if not isinstance(channels, int) or channels < 2 or channels % 2:
            raise ValueError('DPConv needs an even number of channels, which its gates divide by 2; got '
                             f'channels={channels!r}, which has no factor 2')
        count = (channels & -channels).bit_length() - 1
        self.channels = channels
        self.odd_factor = channels >> count
        #: Whether the ratio is being learned; otherwise the gates get no gradient from the layer or its cost.
        self.searching = True
        self.t = nn.Parameter(torch.empty(count))
        self.start_at(split_ratio)

    @torch.no_grad()
    def start_at(self, split_ratio: float) -> None:
        """Sets the gates to a ratio, 1 / 2^z for a z from 0 to K, in legal order, ``0 < |t_k| < 1``."""
        count = len(self.t)
        allowed = [0.5**closed for closed in range(count + 1)]
        if split_ratio not in allowed:
            raise ValueError(f'split_ratio of DPConv must be 1 / 2^z, for {self.channels} channels one of '
                             f'{", ".join(f"{ratio:g}" for ratio in allowed)}; got {split_ratio!r}')
        closed = allowed.index(split_ratio)
        position = torch.arange(count)
        distance = torch.where(position < closed, closed - 1 - position, position - closed)
        magnitude = self.nearest + self.growth * distance / count
        self.t.copy_(torch.where(position < closed, -magnitude, magnitude))

    def binary(self) -> Tensor:
        """The gates g, (K,), of 0 and 1, with the straight-through gradient: that of t, and 0 where ``|t_k| > 1``."""
        t = self.t if self.searching else self.t.detach()
        # Not by clamp(): versions of torch differ in its gradient at the ends.
        passing = torch.where(t.abs() <= 1, t, t.detach())
        return (t > 0).to(t) + (passing - passing.detach())

    def masks(self) -> tuple[Tensor, Tensor]:
        """The channels (C,) that are convolved, the diagonal of M, and the weights M (C, C); both differentiable."""
        gates = self.binary()
        # Entry i of the product is the product of the gates whose bits are set in i, the first gate's bit the highest.
        channels = gates.new_ones(1)
        for gate in gates:
            channels = torch.stack((channels, channels * gate), dim=1).flatten()
        index = torch.arange(len(channels), device=channels.device)
        weights = channels[index[:, None] | index]
        return (channels.repeat_interleave(self.odd_factor),
                weights.repeat_interleave(self.odd_factor, 0).repeat_interleave(self.odd_factor, 1))

    def cost(self) -> Tensor:
        """The paper's cost of the layer (Eq. (7)): ones in U, ``m * C * prod(1 + g_k)``, a differentiable scalar."""
        return self.odd_factor * self.channels * (1 + self.binary()).prod()

    def order_penalty(self) -> Tensor:
        """The layer's term of L_gate (Eq. (8)): ``|t_k|`` of every gate from the first closed one after an open one.

        A scalar, 0 in legal order. It has a gradient whether or not the layer is searching.
        """
        opened = (self.t > 0).long()
        violation = (1 - opened) * opened.cummax(0).values
        return (self.t.abs() * violation.cummax(0).values).sum()

    @torch.no_grad()
    def clamp(self) -> None:
        """Limits the gates to [-1, 1]: beyond, they have no gradient and would never change again."""
        self.t.clamp_(-1, 1)

    @property
    def split_ratio(self) -> float:
        """Fraction of the channels that is convolved now, 1 / G."""
        return ratio_of(self.t)

    def partition(self) -> tuple[Channels, Channels]:
        """The channels that are convolved now, and the others; see :func:`partition_channels`."""
        return partition_channels(self.t, self.channels)


def ratio_of(t: Tensor) -> float:
    """Split ratio of the gates ``t``: 1 / 2^z with z closed ones."""
    return 0.5**(len(t) - int((t > 0).sum()))


def is_legal(t: Tensor) -> bool:
    """Whether the gates ``t`` are ordered, closed before open, so that the first channels are those convolved."""
    opened = (t > 0).tolist()
    return opened == sorted(opened)


def partition_channels(t: Tensor, channels: int) -> tuple[Channels, Channels]:
    """Indices of the channels that are convolved by the gates ``t``, and of the others; slices in legal order."""
    if is_legal(t):
        first = int(channels * ratio_of(t))
        return slice(0, first), slice(first, channels)
    mask = torch.ones(1, dtype=torch.bool, device=t.device)
    for opened in t > 0:
        mask = torch.stack((mask, mask & opened), dim=1).flatten()
    mask = mask.repeat_interleave(channels // len(mask))
    return mask.nonzero().flatten(), (~mask).nonzero().flatten()
