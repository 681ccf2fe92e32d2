# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .block import PartialNetBlock, PartialNetBlockV2
from .dpconv import DPConv, build_dpconv
from .dpconv_attention import DPConvChannelAttention
from .dpconv_classifier import build_dpconv_classifier
from .dpconv_gates import SplitGates
from .dpconv_objective import SearchObjective
from .gate import GaussianGate, SEGate, SRMGate
from .partial_conv import PartialConv
from .partialnet import PartialNet
from .patconv import PartialChannelAttention, PartialSelfAttention, PartialSpatialAttention
from .patconv2d import PATConv2d, build_patconv, merge_following_norms
from .patconv_check import PATConvCheckHook, require_patconv
from .patconv_convnext import build_patconvnext, replace_convs
from .rel_pos import RelativePositionBias

__all__ = [
    'DPConv', 'DPConvChannelAttention', 'GaussianGate', 'PATConv2d', 'PATConvCheckHook', 'PartialChannelAttention',
    'PartialConv', 'PartialNet', 'PartialNetBlock', 'PartialNetBlockV2', 'PartialSelfAttention',
    'PartialSpatialAttention', 'RelativePositionBias', 'SEGate', 'SRMGate', 'SearchObjective', 'SplitGates',
    'build_dpconv', 'build_dpconv_classifier', 'build_patconv', 'build_patconvnext', 'merge_following_norms',
    'replace_convs', 'require_patconv'
]
