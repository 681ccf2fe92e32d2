# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Data loaders whose batches have a number, so that a training finds its position again."""
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler


class WrappedBatches:
    """A batch sampler around another one, which stays visible as mmengine needs it."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.first = 0

    @property
    def sampler(self) -> Any:
        """Draws the order: mmengine sets its epoch, and checkpoints keep its seed."""
        return getattr(self.batches, 'sampler', None)

    @property
    def batch_size(self) -> int | None:
        """Images per batch, None if they are not known."""
        return getattr(self.batches, 'batch_size', None)

    def __len__(self) -> int:
        return len(self.batches)


class NumberedBatches(WrappedBatches):
    """Batches of another batch sampler, counted over the whole training.

    Args:
        batches: Gives lists of indices.
        seed: From which a worker of the loader seeds its random numbers for
            each batch, with the number of the batch; None for no seeds.
        by_epoch: Whether a pass is an epoch, so that what is skipped does not
            count as its length.

    Attributes:
        first: Number of the first batch of the next pass.
        skip: Batches at the start of the next pass that are left out.
    """

    def __init__(self, batches: Any, seed: str | None, by_epoch: bool) -> None:
        super().__init__(batches)
        self.seed = seed
        self.by_epoch = by_epoch
        self.skip = 0

    def __len__(self) -> int:
        return len(self.batches) - (self.skip if self.by_epoch else 0)

    def __iter__(self) -> Iterator[list]:
        skip, number = self.skip, self.first
        for position, batch in enumerate(self.batches):
            if position >= skip:
                yield batch if self.seed is None else SeededBatch(batch, f'{self.seed}, {number}')
                number += 1


class SeededBatch(list):
    """Indices of a batch; reading them seeds the random numbers, in the worker that fetches the batch."""

    def __init__(self, indices: list, seed: str) -> None:
        super().__init__(indices)
        self.seed = seed

    def __iter__(self) -> Iterator:
        numbers = random.Random(self.seed)
        random.seed(numbers.getrandbits(64))
        np.random.seed(numbers.getrandbits(32))
        torch.manual_seed(numbers.getrandbits(63))
        return super().__iter__()

    def __reduce__(self) -> tuple:
        # On its way to the worker it must not be iterated over: that would seed the training's own process.
        return SeededBatch, (self[:], self.seed)


class BatchStream:
    """The batches of a loop over iterations, pass after pass, from a position on; it takes mmengine's iterator's role.

    Args:
        loader: Its batch sampler is a :class:`NumberedBatches`.
        start: Batches of the stream that are left out.
        first: Number of the batch after these.
        discard: Calls that return nothing: mmengine 0.10.7 draws the batches
            that a resumed training has had, in order to skip them.
    """

    def __init__(self, loader: DataLoader, start: int, first: int, discard: int) -> None:
        self._loader = loader
        self._batches: NumberedBatches = loader.batch_sampler
        self._discard = discard
        self._pass = 0
        self._iterator: Iterator | None = None
        self._batches.first = first
        self._batches.skip = start
        sampler = self._batches.sampler
        if isinstance(sampler, InfiniteSampler):
            # mmengine 0.10.7 may have taken batches from its only stream.
            sampler.indices = sampler._indices_of_rank()
        elif isinstance(sampler, (DefaultSampler, SequentialSampler, RandomSampler)):
            self._pass, self._batches.skip = divmod(start, len(self._batches) or 1)
            self._set_epoch()

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        if self._discard > 0:
            self._discard -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._loader)
        try:
            return next(self._iterator)
        except StopIteration:
            if len(self._batches) == 0:
                raise
            left = len(self._batches) - self._batches.skip
            self._batches.first += max(0, left)
            self._batches.skip = max(0, -left)
            self._pass += 1
            self._set_epoch()
            self._iterator = None  # its workers end before those of the next pass start
            return next(self)

    def skip_iter(self, num_iters: int) -> None:
        """Called by newer mmengine on resuming; the stream starts after these batches already."""

    def stop(self) -> None:
        """Ends the workers."""
        stop_iterator(self._iterator)
        self._iterator = None

    def _set_epoch(self) -> None:
        if hasattr(self._batches.sampler, 'set_epoch'):
            self._batches.sampler.set_epoch(self._pass)


def stop_iterator(iterator: Any) -> None:
    """Ends the workers of a data loader's iterator in the way that they know."""
    if hasattr(iterator, '_shutdown_workers'):
        iterator._shutdown_workers()


def loader_like(loader: DataLoader, batch_sampler: Any, dataset: Any = None) -> DataLoader:
    """A loader with another batch sampler or data set, otherwise the same.

    Args:
        loader: The loader to copy.
        batch_sampler: Gives what each batch is read from.
        dataset: Another data set; None for the same. Defaults to None.

    Returns:
        A new loader. Its iterators take no random number from the training's.
    """
    return DataLoader(
        loader.dataset if dataset is None else dataset,
        batch_sampler=batch_sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        generator=torch.Generator() if loader.generator is None else loader.generator)
