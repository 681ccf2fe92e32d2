# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checkpoints of searches with their ratios fixed; that outputs stay the same is shown in tests/e2e."""
import pytest
import torch

from partialnet_mm.converters.fixed_ratios import block_kinds, fix_checkpoint
from partialnet_mm.models import PartialNet


def test_what_is_kept(tiny_arch):
    search = PartialNet(tiny_arch, token_mixers='dpconv', split_ratio=0.5).state_dict()
    meta = dict(dataset_meta=dict(classes=['a']), epoch=3, cfg='...')
    fixed = fix_checkpoint(dict(state_dict=search, meta=meta, optimizer={}))
    assert fixed['meta'] == dict(dataset_meta=dict(classes=['a']), split_ratio=[0.5] * sum(tiny_arch['depths']))
    PartialNet(tiny_arch, token_mixers='partial_conv', split_ratio=0.5).load_state_dict(fixed['state_dict'])


@torch.no_grad()
def test_the_block_of_stage_4_stays(tiny_arch, randomize_norms):
    """The official code searches with block v2 there: a residual around the token mixer."""
    residual = (False, False, False, True)
    search = randomize_norms(PartialNet(tiny_arch, token_mixers='dpconv', mixer_residual=residual)).eval()
    fixed = fix_checkpoint(dict(state_dict=search.state_dict()))
    assert fixed['meta'] == dict(split_ratio=[0.25] * 5, mixer_residual=list(residual))
    assert block_kinds(fixed['state_dict']) == residual
    model = PartialNet(tiny_arch, token_mixers='partial_conv', **fixed['meta']).eval()
    model.load_state_dict(fixed['state_dict'], strict=True)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x), search(x))
    with pytest.raises(ValueError, match='a residual around the token mixers of stage 4'):
        PartialNet(tiny_arch, token_mixers='partial_conv').load_state_dict(fixed['state_dict'], strict=False)


@pytest.mark.parametrize('content, message', [
    (dict(state_dict=[1]), 'holds a list instead of its state dict'),
    (dict(state_dict=dict(a=torch.ones(1))), 'it holds no search of a PartialNet'),
], ids=['list', 'another network'])
def test_what_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        fix_checkpoint(content)
