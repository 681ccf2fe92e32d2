# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints of searches with their ratios fixed; that outputs stay the same is shown in tests/e2e."""
import pytest
import torch

from partialnet_mm.converters.fixed_ratios import fix_checkpoint
from partialnet_mm.models import PartialNet


def test_what_is_kept(tiny_arch):
    search = PartialNet(tiny_arch, token_mixers='dpconv', split_ratio=0.5).state_dict()
    meta = dict(dataset_meta=dict(classes=['a']), epoch=3, cfg='...')
    fixed = fix_checkpoint(dict(state_dict=search, meta=meta, optimizer={}))
    assert fixed['meta'] == dict(dataset_meta=dict(classes=['a']), split_ratio=[0.5] * sum(tiny_arch['depths']))
    PartialNet(tiny_arch, token_mixers='partial_conv', split_ratio=0.5).load_state_dict(fixed['state_dict'])


@pytest.mark.parametrize('content, message', [
    (dict(state_dict=[1]), 'holds a list instead of its state dict'),
    (dict(state_dict=dict(a=torch.ones(1))), 'it holds no search of a PartialNet'),
], ids=['list', 'another network'])
def test_what_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        fix_checkpoint(content)
