# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import pytest
import torch

from partialnet_mm.models import RelativePositionBias
from tests.helpers.reference_network import bucket, pairwise_buckets


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (7, 7), (2, 170)])
def test_buckets_of_all_pairs(size):
    buckets = RelativePositionBias(2).buckets(*size)
    assert buckets.dtype == torch.int64
    assert torch.equal(buckets, pairwise_buckets(*size))


def test_buckets_by_hand():
    by_column = RelativePositionBias(1).buckets(1, 200)[0]
    # Identity up to alpha = 20, then logarithmic: 20 + 20 ln(d / 20) / ln 8, the last bucket from there on.
    assert by_column[:21].tolist() == list(range(21))
    assert by_column[[21, 30, 40, 80, 150, 160, 199]].tolist() == [20, 24, 27, 33, 39, 40, 40]
    assert by_column.diff().min() == 0
    # (3, 4) is at distance 5, (1, 1) at the rounded 1.41, (2, 2) at the rounded 2.83.
    square = RelativePositionBias(1).buckets(5, 5)[0].view(5, 5)
    assert (square[3, 4], square[1, 1], square[2, 2]) == (5, 1, 3)


@pytest.mark.parametrize('alpha, beta, gamma, expected', [(2, 4, 8, [0, 1, 2, 3, 3, 3, 4, 4, 4, 4]),
                                                          (1, 3, 16, [0, 1, 2, 2, 2, 2, 2, 2, 2, 3])])
def test_other_constants(alpha, beta, gamma, expected):
    layer = RelativePositionBias(1, alpha, beta, gamma)
    assert layer.table.shape == (1, beta + 1)
    assert layer.buckets(1, 10)[0].tolist() == expected


def test_far_distances_use_every_bucket():
    used = set(RelativePositionBias(1).buckets(1, 170)[0].tolist())
    assert used == {bucket(0, d) for d in range(170)}
    assert max(used) == 40


def test_bias_is_a_scalar_for_each_head_and_bucket():
    layer = RelativePositionBias(3)
    torch.nn.init.normal_(layer.table)
    bias = layer(4, 6)
    assert bias.shape == (1, 3, 24, 24)
    buckets = pairwise_buckets(4, 6)
    for head in range(3):
        assert torch.equal(bias[0, head], layer.table[head][buckets])
    bias.sum().backward()
    counts = torch.bincount(buckets.flatten(), minlength=41).float()
    assert torch.equal(layer.table.grad, counts.expand(3, 41))


def test_starts_at_zero_and_keeps_nothing_of_a_size():
    layer = RelativePositionBias(2)
    assert list(layer.state_dict()) == ['table']
    assert layer(3, 3).abs().sum() == 0
    torch.nn.init.normal_(layer.table)
    first = layer(3, 4)
    layer(9, 2)
    assert torch.equal(layer(3, 4), first)
    assert list(layer.state_dict()) == ['table']


def test_the_usual_buckets_hold_after_a_construction_without_memory():
    with torch.device('meta'):
        layer = RelativePositionBias(2)
    layer.to_empty(device='cpu')
    assert torch.equal(layer.buckets(7, 7), pairwise_buckets(7, 7))
    assert torch.equal(layer.half().buckets(7, 7), pairwise_buckets(7, 7))
