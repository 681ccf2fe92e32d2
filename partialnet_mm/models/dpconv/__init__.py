# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""DPConv: the search for split ratios (Sec. 3.2 of the paper)."""
from .channel_attention import DPConvChannelAttention
from .classifier import build_dpconv_classifier
from .layer import DPConv, build_dpconv
from .objective import SearchObjective
from .split_gates import SplitGates

__all__ = ['DPConv', 'DPConvChannelAttention', 'SearchObjective', 'SplitGates', 'build_dpconv',
           'build_dpconv_classifier']
