# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""PATConv as a layer of other networks (Table 5 of the paper)."""
from .check import require_patconv
from .convnext import build_patconvnext, replace_convs
from .layer import PATConv2d, build_patconv, merge_following_norms

__all__ = ['PATConv2d', 'build_patconv', 'build_patconvnext', 'merge_following_norms', 'replace_convs',
           'require_patconv']
