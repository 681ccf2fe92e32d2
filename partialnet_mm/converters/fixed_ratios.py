# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The checkpoint of a search for split ratios, converted into one of the network with the ratios fixed."""
import re

from ..checkpoint.layouts import OWN_RESIDUAL, Structure
from ..checkpoint.pretrained import find_state_dict
from ..models.dpconv.fixed_ratios import block_ratios, fix_ratios
from .publish import strip_checkpoint


def fix_checkpoint(content: dict) -> dict:
    """The checkpoint of the network with fixed ratios: see :func:`fix_ratios`.

    Args:
        content: Content of a checkpoint of a search.

    Returns:
        'state_dict', and 'meta' with 'split_ratio', one per block, and, where
        it is known, 'dataset_meta'. Where ``mixer_residual`` of the search is
        not what its token mixers demand, it is in 'meta' and, as in the
        search, in the tensors.

    Raises:
        ValueError: If it is of something else, its weights are not finite, or
            gates are out of order.
    """
    state_dict = find_state_dict(content)
    block_ratios(state_dict)  # what is of something else is reported as that first
    stripped = strip_checkpoint(content)
    meta = {name: value for name, value in stripped['meta'].items() if name == 'dataset_meta'}
    meta['split_ratio'] = block_ratios(state_dict)
    fixed = fix_ratios(stripped['state_dict'])
    if any(name.endswith(f'.{OWN_RESIDUAL}') for name in fixed):
        meta['mixer_residual'] = list(block_kinds(fixed))
    return dict(state_dict=fixed, meta=meta)


def block_kinds(state_dict: dict) -> tuple[bool, ...]:
    """Whether the token mixers of each stage have a residual of their own, in a state dict of any prefix."""
    found = {match[1]: value for name, value in state_dict.items()
             if (match := re.search(r'(?:^|\.)(stages\.\d+\.\d+\..*)', name))}
    return Structure.read(found).residuals
