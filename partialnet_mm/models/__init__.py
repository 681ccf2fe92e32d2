# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .block import PartialNetBlock, PartialNetBlockV2
from .gate import GaussianGate, SEGate, SRMGate
from .partial_conv import PartialConv
from .partialnet import PartialNet
from .patconv import PartialChannelAttention, PartialSelfAttention, PartialSpatialAttention
from .rel_pos import RelativePositionBias

__all__ = [
    'GaussianGate', 'PartialChannelAttention', 'PartialConv', 'PartialNet', 'PartialNetBlock', 'PartialNetBlockV2',
    'PartialSelfAttention', 'PartialSpatialAttention', 'RelativePositionBias', 'SEGate', 'SRMGate'
]
