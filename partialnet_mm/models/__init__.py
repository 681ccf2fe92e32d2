# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .dpconv import (
    DPConv,
    DPConvChannelAttention,
    SearchObjective,
    SplitGates,
    build_dpconv,
    build_dpconv_classifier,
)
from .gates import CBAMGate, ECAGate, GaussianGate, SEGate, SRMGate
from .merged_block import MergedBlock, merge_model
from .partialnet import PartialNet, PartialNetBlock, PartialNetBlockV2
from .patconv import PartialChannelAttention, PartialConv, PartialSelfAttention, PartialSpatialAttention
from .patconv2d import (
    PATConv2d,
    build_patconv,
    build_patconvnext,
    merge_following_norms,
    replace_convs,
    require_patconv,
)
from .position_bias import RelativePositionBias

__all__ = [
    'CBAMGate', 'DPConv', 'DPConvChannelAttention', 'ECAGate', 'GaussianGate', 'MergedBlock', 'PATConv2d',
    'PartialChannelAttention', 'PartialConv', 'PartialNet', 'PartialNetBlock', 'PartialNetBlockV2',
    'PartialSelfAttention', 'PartialSpatialAttention', 'RelativePositionBias', 'SEGate', 'SRMGate', 'SearchObjective',
    'SplitGates', 'build_dpconv', 'build_dpconv_classifier', 'build_patconv', 'build_patconvnext',
    'merge_following_norms', 'merge_model', 'replace_convs', 'require_patconv'
]
