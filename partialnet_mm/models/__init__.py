# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .block import PartialNetBlock, PartialNetBlockV2
from .dpconv.channel_attention import DPConvChannelAttention
from .dpconv.classifier import build_dpconv_classifier
from .dpconv.layer import DPConv, build_dpconv
from .dpconv.objective import SearchObjective
from .dpconv.split_gates import SplitGates
from .gates import GaussianGate, SEGate, SRMGate
from .merge_model import merge_model
from .partialnet import PartialNet
from .patconv import PartialChannelAttention, PartialConv, PartialSelfAttention, PartialSpatialAttention
from .patconv2d.check import require_patconv
from .patconv2d.convnext import build_patconvnext, replace_convs
from .patconv2d.layer import PATConv2d, build_patconv, merge_following_norms
from .position_bias import RelativePositionBias

__all__ = [
    'DPConv', 'DPConvChannelAttention', 'GaussianGate', 'PATConv2d', 'PartialChannelAttention',
    'PartialConv', 'PartialNet', 'PartialNetBlock', 'PartialNetBlockV2', 'PartialSelfAttention',
    'PartialSpatialAttention', 'RelativePositionBias', 'SEGate', 'SRMGate', 'SearchObjective', 'SplitGates',
    'build_dpconv', 'build_dpconv_classifier', 'build_patconv', 'build_patconvnext', 'merge_following_norms',
    'merge_model', 'replace_convs', 'require_patconv'
]
