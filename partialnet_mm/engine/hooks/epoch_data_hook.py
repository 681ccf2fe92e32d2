# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The data of an epoch depends on the seed and the epoch alone, and goes on from its middle."""
import atexit
import signal
import weakref
from collections.abc import Callable
from functools import partial
from types import FrameType

import torch
from mmengine.dataset import worker_init_fn
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ._loader_like import loader_like


@HOOKS.register_module()
class EpochDataHook(Hook):
    """Makes a resumed epoch see the data that it would have seen.

    Workers of the data loader draw from a seed of their own for each epoch.
    mmengine seeds them alike in each epoch, so that augmentations repeat, or,
    where they persist, once only, so that a resumed training draws others.
    Persistent workers start anew with each epoch.

    A checkpoint from the middle of an epoch, as :class:`PreemptionHook` saves
    it, goes on with the batches that the epoch has left; mmengine would go
    through the whole epoch again. The order is that of the seed; without
    workers the augmentations are exactly those of an uninterrupted training
    as well.

    Workers outlive a SIGTERM to all processes of a job for half a minute, so
    that :class:`PreemptionHook` can finish the iteration and save.

    Loops over iterations are left as they are: mmengine skips their batches.
    """

    # After DistSamplerSeedHook (NORMAL), before checkpoints (VERY_LOW).
    priority = 'LOW'

    def __init__(self) -> None:
        self._whole_epoch: DataLoader | None = None
        self._worker_init: Callable | None = None
        self._held = False

    def before_train(self, runner: Runner) -> None:
        """Prepares the workers of both loaders."""
        # When training ends by an error, Python ends the workers by SIGTERM, which they would outlive.
        atexit.register(_stop_workers_of, weakref.ref(runner))
        self._worker_init = runner.train_loop.dataloader.worker_init_fn
        if runner.val_loop is not None:
            loader = runner.val_loop.dataloader
            loader.worker_init_fn = partial(start_worker, loader.worker_init_fn)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Corrects the position in the training where epochs have become longer or shorter."""
        if not runner._resume or not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        meta, length = checkpoint['meta'], len(runner.train_loop.dataloader)
        if not 0 <= meta['iter'] - meta['epoch'] * length <= length:
            runner.logger.warning(
                f'the checkpoint is at epoch {meta["epoch"]}, iteration {meta["iter"]}, which does not fit epochs of '
                f'{length} iterations: other data, batch size or number of processes. Its last epoch starts anew')
            meta['iter'] = meta['epoch'] * length

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds the workers, and leaves out what the epoch has already had."""
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        loader = loop.dataloader
        self._seed_workers(runner, loader)
        self._hold_sigterm(loader)
        done = loop.iter - loop.epoch * len(loader)
        if done == 0:
            return
        runner.logger.info(f'epoch {loop.epoch + 1} goes on after {done} of its {len(loader)} iterations')
        self._whole_epoch = loader
        loop.dataloader = remaining_batches(loader, done)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Workers are ready when the first batch is there."""
        self._release_sigterm()

    def before_val(self, runner: Runner) -> None:
        """As before an epoch of training."""
        self._hold_sigterm(runner.val_loop.dataloader)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """As in training."""
        self._release_sigterm()

    def after_val(self, runner: Runner) -> None:
        """A validation without images has had no batch."""
        self._release_sigterm()

    def after_train_epoch(self, runner: Runner) -> None:
        """Gives the loop its loader back."""
        self._release_sigterm()
        if self._whole_epoch is not None:
            runner.train_loop.dataloader = self._whole_epoch
            self._whole_epoch = None

    def after_run(self, runner: Runner) -> None:
        """Ends the workers that persist."""
        stop_workers(runner)

    def _hold_sigterm(self, loader: DataLoader) -> None:
        # A worker inherits this and lets the signal in when it can outlive it: see start_worker.
        if loader.num_workers > 0 and not self._held:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            self._held = True

    def _release_sigterm(self) -> None:
        if self._held:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            self._held = False

    def _seed_workers(self, runner: Runner, loader: DataLoader) -> None:
        if loader.num_workers == 0:
            return
        init = self._worker_init
        if isinstance(init, partial) and init.func is worker_init_fn:
            # mmengine adds rank * num_workers + worker, so epochs do not share seeds.
            seed = runner.seed + runner.epoch * loader.num_workers * runner.world_size
            init = partial(init.func, **dict(init.keywords, seed=seed % 2**32))
        loader.worker_init_fn = partial(start_worker, init)
        # Workers that persist have used their seed up; without them the loader starts new ones.
        loader._iterator = None


def stop_workers(runner: Runner) -> None:
    """Ends the persistent workers of a training in the way that they know.

    Args:
        runner: The runner; its loaders can be used again.
    """
    for loop in (runner._train_loop, runner._val_loop):
        loader = getattr(loop, 'dataloader', None)  # a loop that was not built is a dict
        iterator = getattr(loader, '_iterator', None)
        if iterator is not None:
            iterator._shutdown_workers()
            loader._iterator = None


def _stop_workers_of(reference: 'weakref.ReferenceType[Runner]') -> None:
    runner = reference()
    if runner is not None:
        stop_workers(runner)


def start_worker(init: Callable[[int], None] | None, worker: int) -> None:
    """Starts a worker of a data loader that a SIGTERM to the whole job does not end at once.

    torch lets it die, upon which the training fails in the middle of an
    iteration.

    Args:
        init: What the loader would have called.
        worker: Index of the worker.
    """
    signal.signal(signal.SIGTERM, _linger)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if init is not None:
        init(worker)


def _linger(number: int, frame: FrameType | None) -> None:
    # SIGALRM ends the process; the training ends its workers sooner.
    signal.alarm(30)


def remaining_batches(loader: DataLoader, done: int) -> DataLoader:
    """A loader of what an epoch has left.

    Args:
        loader: Of the whole epoch, its sampler set to that epoch.
        done: Batches that the epoch has had.

    Returns:
        DataLoader: Without those, and else the same.
    """
    # With a generator of its own the new iterator takes no number from the training's.
    return loader_like(loader, list(loader.batch_sampler)[done:], generator=torch.Generator())
