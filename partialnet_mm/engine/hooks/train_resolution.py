# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Which side the training images of a batch have: drawn at random, or by a schedule."""
import bisect
import random
from collections.abc import Sequence
from typing import Any

#: Table 8 of the paper.
PAPER_SIZES = (128, 160, 192, 224, 256, 288)
#: PartialNet halves the side five times, and at 32 its last feature map is a single pixel.
STRIDE = 32


class TrainResolution:
    """The side of the images of each batch, a function of the seed and the iteration alone.

    So all processes know it without asking each other, and a training that
    goes on knows it without a state.

    Args:
        sizes: Sides to draw from, each with the same
            chance, in pixels. Defaults to None, which is the six of Table 8 of
            the paper, 128 to 288, unless ``schedule`` is given.
        schedule: Pairs of the epoch from
            which a side holds, counted from 0, and that side, instead of
            drawing. Defaults to None.

    Attributes:
        sizes: All sides that batches may have.

    Raises:
        ValueError: If both are given, a side is not a multiple of 32, there is
            none, or the schedule does not start at 0 and rise.
    """

    def __init__(self,
                 sizes: Sequence[int] | None = None,
                 schedule: Sequence[tuple[int, int]] | None = None) -> None:
        if sizes is not None and schedule is not None:
            raise ValueError('sizes are drawn from and schedule draws nothing: only one of them may be given, got '
                             f'sizes={sizes!r} and schedule={schedule!r}')
        self._begins: list[int] | None = None
        if schedule is not None:
            self._begins = _check_begins(schedule)
            sizes = [size for _, size in schedule]
        self.sizes = _check_sizes('sizes' if schedule is None else 'schedule', PAPER_SIZES if sizes is None else sizes)

    def size_at(self, seed: int, iteration: int, epoch: int) -> int:
        """The side of a batch.

        Args:
            seed: The same on all processes.
            iteration: Of the whole training, counted from 0.
            epoch: Counted from 0.

        Returns:
            int: In pixels.
        """
        if self._begins is not None:
            return self.sizes[bisect.bisect(self._begins, epoch) - 1]
        # Python promises that random() keeps its numbers from version to version.
        return self.sizes[int(random.Random(f'{seed}, {iteration}').random() * len(self.sizes))]

    def __repr__(self) -> str:
        if self._begins is None:
            return f'drawn from {list(self.sizes)}'
        return ', '.join(f'{size} from {begin} on' for begin, size in zip(self._begins, self.sizes))


def _check_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, (list, tuple)) or not sizes:
        raise ValueError(f'{name} must be a list of at least one side in pixels, got {sizes!r}')
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < STRIDE or size % STRIDE:
            raise ValueError(f'{name} must hold multiples of {STRIDE}, from {STRIDE} up, got {size!r}')
    return tuple(sizes)


def _check_begins(schedule: Any) -> list[int]:
    form = 'pairs (first epoch, side) that start at epoch 0 and rise, such as [(0, 192), (280, 224)]'
    if not isinstance(schedule, (list, tuple)) or not schedule or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], int) for pair in schedule):
        raise ValueError(f'schedule must be {form}, got {schedule!r}')
    begins = [begin for begin, _ in schedule]
    if begins[0] != 0 or any(later <= earlier for earlier, later in zip(begins, begins[1:])):
        raise ValueError(f'schedule must be {form}, got {schedule!r}')
    return begins
