# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Batches with numbers: what is skipped, what is seeded, and passes after each other."""
import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader

from partialnet_mm.engine.hooks._batches import BatchStream, NumberedBatches, SeededBatch, loader_like


def numbered(sampler=DefaultSampler, length=10, batch_size=3, seed=None, by_epoch=False):
    return NumberedBatches(BatchSampler(sampler(range(length), seed=0), batch_size, drop_last=False), seed, by_epoch)


def loader(batches, length=10, workers=0):
    return loader_like(DataLoader(list(range(length)), num_workers=workers), batches)


def test_skipped_batches_are_missing_and_the_length_is_that_of_the_rest():
    batches = numbered(by_epoch=True)
    whole = list(batches)
    batches.skip = 3
    assert len(batches) == 1 and list(batches) == whole[3:]
    state = torch.get_rng_state()
    assert [batch.tolist() for batch in loader(batches)] == whole[3:]
    assert torch.equal(state, torch.get_rng_state()), 'an iterator must not use the numbers of the training up'


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
@pytest.mark.parametrize('start', [0, 1, 4, 9, 11])
def test_a_stream_goes_on_where_another_was_left(sampler, start):
    def stream(start, discard=0):
        return BatchStream(loader(numbered(sampler)), start, start, discard)

    whole = stream(0)
    expected = [next(whole).tolist() for _ in range(14)]
    assert len({tuple(batch) for batch in expected}) > 8
    resumed = stream(start)
    resumed.skip_iter(start)
    assert [next(resumed).tolist() for _ in range(14 - start)] == expected[start:]
    discarding = stream(start, start)  # as mmengine 0.10.7 skips
    assert [next(discarding) for _ in range(start)] == [None] * start
    assert next(discarding).tolist() == expected[start]


def test_a_batch_seeds_the_worker_that_reads_it_and_nobody_else():
    batches = numbered(seed='0, 0', by_epoch=True)
    batches.first = 7
    batch = list(batches)[1]
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    sent = pickle.loads(pickle.dumps(batch))
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert isinstance(sent, SeededBatch) and sent == batch and sent.seed == batch.seed == '0, 0, 8'

    def drawn(batch):
        list(iter(batch))
        return random.random(), np.random.random(), torch.rand(1).item()

    assert drawn(sent) == drawn(batch) != drawn(list(batches)[2])


def test_an_empty_loader_ends():
    with pytest.raises(StopIteration):
        next(BatchStream(loader(NumberedBatches(BatchSampler([0], 3, drop_last=True), None, False)), 0, 0, 0))
