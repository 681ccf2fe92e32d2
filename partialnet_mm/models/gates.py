# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Channel gates: what PAT_ch weights its attended channels by."""

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from ._folding import fold_norm_after
from ._layers import normalize
from .execution import runs_on_cpu


class _StatisticsGate(nn.Module):
    """Gates from a convolution of kernel (1, 2) over each channel's mean and deviation, a norm and a Hard-Sigmoid."""

    def __init__(self, channels: int, groups: int, norm_cfg: dict, deploy: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, (1, 2), groups=groups, bias=deploy)
        self.norm = None if deploy else build_norm_layer(norm_cfg, channels)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to gates (B, C, 1, 1) in [0, 1]."""
        logits = self._mix(torch.stack(_mean_and_std(x), dim=-1)).view(*x.shape[:2], 1, 1)
        if self.norm is not None:
            logits = normalize(self.norm, logits)
        return F.hardsigmoid(logits)

    def _mix(self, statistics: Tensor) -> Tensor:
        """(B, C) of (B, C, 2): the convolution, whose kernel covers all of its input."""
        raise NotImplementedError

    def switch_to_deploy(self) -> None:
        """Merges the norm into the convolution; does nothing the second time."""
        if self.norm is not None:
            self.conv = fold_norm_after(self.conv, self.norm, f'the norm of {type(self).__name__}')
            self.norm = None


def _mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    if runs_on_cpu(x):
        return _vectorized_mean_and_std(x.flatten(2), dim=2)
    # A map of one element has no deviation: with the usual correction it would be NaN.
    std, mean = torch.std_mean(x, dim=(2, 3), correction=int(x.shape[2] * x.shape[3] > 1))
    return mean, std


def _vectorized_mean_and_std(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    # The same by passes that are vectorized on a CPU, which std_mean is not.
    mean = x.mean(dim, keepdim=True)
    variance = (x - mean).square_().sum(dim).div_(max(x.shape[dim] - 1, 1))
    return mean.squeeze(dim), variance.sqrt_()


class GaussianGate(_StatisticsGate):
    """Gaussian channel attention (Sec. 3.1 of the paper, PAT_ch).

    Each channel is summed up by its mean and its unbiased standard deviation
    over the map; a convolution of kernel (1, 2) mixes both over all channels;
    the result is normalized over the batch and squashed by a Hard-Sigmoid.

    Args:
        channels: Channels of the map.
        norm_cfg: Norm of the gate. Defaults to ``dict(type='BN')``.
        deploy: Whether to build the merged form, in which the norm is
            part of the convolution. Defaults to False.
    """

    def __init__(self, channels: int, norm_cfg: dict = dict(type='BN'), deploy: bool = False) -> None:
        super().__init__(channels, 1, norm_cfg, deploy)

    def _mix(self, statistics: Tensor) -> Tensor:
        return F.linear(statistics.flatten(1), self.conv.weight.flatten(1), self.conv.bias)

    def of_one_map(self, x: Tensor, dim: int) -> Tensor:
        """The merged gate of one image's map on a CPU, as a matrix, in few operations.

        Args:
            x: (C, places) or (places, C).
            dim: Which dimension is that of the places.

        Returns:
            Tensor: Gates, (C,).
        """
        statistics = torch.stack(_vectorized_mean_and_std(x, dim), dim=-1).flatten()
        return F.hardsigmoid(torch.addmv(self.conv.bias, self.conv.weight.flatten(1), statistics))


class SRMGate(_StatisticsGate):
    """Style-based recalibration, a gate of Table 12: like the Gaussian one, each channel by itself.

    Paper: `SRM: A Style-based Recalibration Module for Convolutional Neural
    Networks <https://arxiv.org/abs/1903.10829>`_.

    Args:
        channels: Channels of the map.
        norm_cfg: Norm of the gate. Defaults to ``dict(type='BN')``.
        deploy: Whether to build the merged form, in which the norm is
            part of the convolution. Defaults to False.
    """

    def __init__(self, channels: int, norm_cfg: dict = dict(type='BN'), deploy: bool = False) -> None:
        super().__init__(channels, channels, norm_cfg, deploy)

    def _mix(self, statistics: Tensor) -> Tensor:
        return self.conv(statistics.unsqueeze(2))[:, :, 0, 0]


class SEGate(nn.Module):
    """Squeeze-and-excitation, a gate of Table 12: two layers on each channel's mean.

    Paper: `Squeeze-and-Excitation Networks
    <https://arxiv.org/abs/1709.01507>`_.

    Args:
        channels: Channels of the map.
        reduction: Divides the channels between the two layers. Defaults
            to 4.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.expand = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to gates (B, C, 1, 1) in [0, 1]."""
        return F.hardsigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


#: Names of the gates, the paper's own first.
GATES = ('gaussian', 'srm', 'se')


def build_gate(gate: str, channels: int, norm_cfg: dict = dict(type='BN'), deploy: bool = False) -> nn.Module:
    """Builds a channel gate.

    Args:
        gate: 'gaussian' (the paper's), 'srm' or 'se'.
        channels: Channels of the map.
        norm_cfg: Norm of the gate. Defaults to ``dict(type='BN')``.
        deploy: Whether to build the merged form. Defaults to False.

    Returns:
        nn.Module: From (B, C, H, W) to (B, C, 1, 1).

    Raises:
        ValueError: If there is no such gate.
    """
    if gate not in GATES:
        raise ValueError(f'gate must be one of {GATES}, got {gate!r}')
    if gate == 'se':  # it has no norm, and so no other form to merge into
        return SEGate(channels)
    return (GaussianGate if gate == 'gaussian' else SRMGate)(channels, norm_cfg, deploy)
