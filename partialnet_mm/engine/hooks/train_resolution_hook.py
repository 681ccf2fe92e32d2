# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Trains a classifier with images of changing resolution."""
from collections.abc import Sequence
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ...models._arguments import named_arguments
from .train_resolution import TrainResolution
from .train_resolution_data import ResolutionBatchSampler, images_of, with_resolution

_SEED = 'train_resolution_seed'


@HOOKS.register_module()
class TrainResolutionHook(Hook):
    """Gives the images of each training batch one of several sizes.

    ``custom_hooks = [dict(type='TrainResolutionHook')]`` adds it to any
    mmpretrain config whose train pipeline has a ``RandomResizedCrop``,
    mmpretrain's, torchvision's or :class:`FastRandomResizedCrop`; its size in
    the config then does not count.
    That crop itself makes images of the size of the batch, so nothing is
    resampled twice. Validation and test are left as they are.

    The size is a function of a seed and the number of the optimizer's step:
    the same on all processes, without any message between them, with any
    number of workers, and the same in a training that is resumed, also in the
    middle of an epoch (:class:`EpochDataHook`). The log shows the size as
    ``resolution``.

    Memory is needed for the largest size.

    Args:
        sizes: Sides to draw from, each with the same
            chance, in pixels. Defaults to None, which is the six of Table 8 of
            the paper, 128, 160, 192, 224, 256, 288, unless ``schedule`` is
            given.
        schedule: Sides by the epoch from
            which they hold, counted from 0, instead of drawing; in loops over
            iterations, by the iteration. The official code's is
            ``[(0, 192), (280, 224)]``. Defaults to None.
        seed: Of the draws. Defaults to None: that of the data
            loader's sampler, which mmengine makes the same on all processes.

    Raises:
        TypeError: If an argument is not known.
        ValueError: If both ``sizes`` and ``schedule`` are given, a side is not
            a multiple of 32, there is none, or the schedule does not start at
            0 and rise. When the training starts: if the train pipeline does
            not hold exactly one random resized crop, or the sampler has no
            seed and none is given.
    """

    # Before all that looks at the data loader.
    priority = 'HIGH'

    @named_arguments
    def __init__(self,
                 sizes: Sequence[int] | None = None,
                 schedule: Sequence[tuple[int, int]] | None = None,
                 seed: int | None = None) -> None:
        self.resolution = TrainResolution(sizes, schedule)
        self.seed = seed
        self._batches: ResolutionBatchSampler | None = None

    def before_train(self, runner: Runner) -> None:
        """Replaces the loader of the training.

        Raises:
            ValueError: As for the class.
        """
        if self._batches is not None:
            return  # a second call of runner.train()
        loop = runner.train_loop
        seed = self._choose_seed(runner)
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        length = len(loop.dataloader)

        # Iterations whose gradients are accumulated make one batch, and share its size.
        counts = (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)

        def size_at(iteration: int) -> int:
            return self.resolution.size_at(seed, iteration // counts, iteration // length if by_epoch else iteration)

        loop.dataloader = with_resolution(loop.dataloader, size_at)
        self._batches = loop.dataloader.batch_sampler
        if not by_epoch:
            sampler = self._batches.sampler
            if isinstance(sampler, InfiniteSampler):
                # mmengine 0.10.7 has an iterator already, whose end would be the end of the sampler's only stream.
                sampler.indices = sampler._indices_of_rank()
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)
        runner.logger.info(f'training resolution: {self.resolution!r}, seed {seed}')

    def before_train_epoch(self, runner: Runner) -> None:
        """Sets the iteration of the next batch."""
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            self._batches.first = loop.epoch * len(self._batches)
        elif getattr(loop, 'fast_forward_on_resume', False):
            # Otherwise a resumed loop over iterations goes through all its batches from the first on.
            self._batches.first = loop.iter

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: dict | None = None) -> None:
        """Logs the size of the images."""
        runner.message_hub.update_scalar('train/resolution', images_of(data_batch)[0].shape[-1])

    def _choose_seed(self, runner: Runner) -> int:
        seed = self.seed
        if seed is None and runner._resume:
            seed = runner.message_hub.get_info(_SEED)  # part of the checkpoint
        if seed is None:
            sampler = getattr(runner.train_loop.dataloader.batch_sampler, 'sampler', None)
            seed = getattr(sampler, 'seed', None)
        if seed is None:
            raise ValueError(f'the sampler of the train_dataloader, {type(sampler).__name__}, has no seed that all '
                             'processes share: give TrainResolutionHook a seed')
        runner.message_hub.update_info(_SEED, seed)
        return seed
