# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The merged form by plain convolutions, for runtimes that work on feature maps in blocks of channels.

In PyTorch on a CPU, a merged block is quickest by matrix products with the channels last. onnxruntime and OpenVINO
compute convolutions in layouts of their own, into which they fuse activations and sums. Between matrix products they
would have to reorder every feature map.
"""
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models._folding import conv_of
from ..models.gates import MergedStatisticsGate, variance_divisor
from ..models.merged_block import MergedBlock
from ..models.patconv import MergedChannelAttention


class ExportedBlock(nn.Module):
    """A :class:`MergedBlock` that computes the same by convolutions with the channels first.

    The MLP ends in a convolution for the channels that PAT_sp weights, and one for the others. The logit is one more
    output of the first (appendix, Fig. 1 (d)).

    Args:
        block: Stays as it is.
    """

    #: Outputs that the logit takes, all zero but one: runtimes divide feature maps in blocks of as many channels, and
    #: OpenVINO splits whole blocks quicker than single channels.
    block_size = 8

    @torch.no_grad()
    def __init__(self, block: MergedBlock) -> None:
        super().__init__()
        mixer, (conv1, act, conv2) = block.token_mixer, block.mlp.values()
        self.token_mixer = ExportedChannelAttention(mixer) if isinstance(mixer, MergedChannelAttention) else mixer
        self.mixer_residual = block.mixer_residual
        self.mlp = nn.ModuleDict(dict(conv1=conv_of(nn.Conv2d, conv1, conv1.weight, conv1.bias), act=act))
        weight, bias, self.shift = conv2.weight, conv2.bias, None
        if block.spatial_attention is not None:
            self.shift, logit = block.spatial_attention.shift, block.spatial_attention.logit_conv
            self.split_sizes = (self.shift.shape[1], 1, self.block_size - 1)
            first, _, padding = self.split_sizes
            if first < len(weight):
                self.mlp['conv2_rest'] = conv_of(nn.Conv2d, conv2, weight[first:], bias[first:])
            weight = torch.cat((weight[:first], logit.weight, weight.new_zeros(padding, *weight.shape[1:])))
            bias = torch.cat((bias[:first], logit.bias, bias.new_zeros(padding)))
        self.mlp['conv2'] = conv_of(nn.Conv2d, conv2, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        mixed = self.token_mixer(x)
        if self.mixer_residual:
            x = mixed = x + mixed
        hidden = self.mlp['act'](self.mlp['conv1'](mixed))
        mixed = self.mlp['conv2'](hidden)
        if self.shift is not None:
            attended, logit, _ = mixed.split(self.split_sizes, dim=1)
            mixed = attended * F.hardsigmoid(logit) + self.shift
            if 'conv2_rest' in self.mlp:
                mixed = torch.cat((mixed, self.mlp['conv2_rest'](hidden)), dim=1)
        return x + mixed


class ExportedChannelAttention(nn.Module):
    """A :class:`MergedChannelAttention` with the channels first.

    Args:
        mixer: Stays as it is.
    """

    def __init__(self, mixer: MergedChannelAttention) -> None:
        super().__init__()
        self.split_sizes, self.attend_all, self.conv = mixer.split_sizes, mixer.attend_all, mixer.conv
        self.gate = mixer.gate
        if isinstance(mixer.gate, MergedStatisticsGate):
            self.gate = ExportedStatisticsGate(mixer.gate)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        convolved, attended = x.split(self.split_sizes, dim=1)
        if self.attend_all:
            x = torch.cat((self.conv(convolved), attended), dim=1)
            return x * self.gate(x)
        return torch.cat((self.conv(convolved), attended * self.gate(attended)), dim=1)


class ExportedStatisticsGate(nn.Module):
    """A :class:`MergedStatisticsGate` with the channels first.

    Args:
        gate: Stays as it is.
    """

    def __init__(self, gate: MergedStatisticsGate) -> None:
        super().__init__()
        self.conv = gate.conv

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to gates (B, C, 1, 1) in [0, 1]."""
        mean = x.mean((2, 3), keepdim=True)
        squares = (x - mean).square().sum((2, 3), keepdim=True)
        deviation = (squares / variance_divisor(x.shape[2] * x.shape[3])).sqrt()
        return F.hardsigmoid(self.conv(torch.cat((mean, deviation), dim=3)))


def exported_form(network: nn.Module) -> nn.Module:
    """A copy of a network in which each :class:`MergedBlock` is an :class:`ExportedBlock`.

    Args:
        network: In evaluation mode. It stays as it is.

    Returns:
        The network itself where it has no merged block.
    """
    if not any(isinstance(module, MergedBlock) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, MergedBlock):
                setattr(parent, name, ExportedBlock(child).eval())
    return network
