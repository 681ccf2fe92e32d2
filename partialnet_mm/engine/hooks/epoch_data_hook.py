# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The data of a training depend on the seed and the position alone, and a resumed training finds its position."""
import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from types import FrameType

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader

from ._batches import BatchStream, NumberedBatches, loader_like, stop_iterator


@HOOKS.register_module()
class EpochDataHook(Hook):
    """Makes a resumed training see the data that it would have seen, over epochs and over iterations.

    Workers of the data loader seed their random numbers for each batch, by its
    number. mmengine seeds them alike in each epoch, so that augmentations
    repeat, or, where they persist, only once, so that a resumed training draws
    others. Without workers, :class:`CrashSafeCheckpointHook` restores the random
    numbers.

    A checkpoint from the middle of an epoch, as :class:`PreemptionHook` saves
    it, goes on with the batches that the epoch has left; mmengine would repeat
    the whole epoch. Loops over iterations go on with their next batch, and no
    skipped image is read.

    The position is kept in images. With another batch size or number of
    processes, a training goes on at the same image if a batch starts there and
    mmengine's ``DefaultSampler`` or ``InfiniteSampler`` draws the order.
    Otherwise the epoch starts anew, with a warning.

    Workers outlive a SIGTERM to all processes of a job for half a minute, so
    that :class:`PreemptionHook` can finish the iteration and save.
    """

    # After DistSamplerSeedHook (NORMAL), before checkpoints (VERY_LOW).
    priority = 'LOW'

    def __init__(self) -> None:
        self._batches: NumberedBatches | None = None
        #: Images and iterations of a loop over iterations when this process took over.
        self._start = (0, 0)
        self._held = False

    def before_train(self, runner: Runner) -> None:
        """Numbers the batches, and prepares the workers of both loaders."""
        atexit.register(_kill_workers, os.getpid())
        loop = runner.train_loop
        if isinstance(getattr(loop.dataloader, 'batch_sampler', None), NumberedBatches):
            return  # a second call of runner.train()
        if isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)) and loop.dataloader.batch_sampler is not None:
            seed = f'{runner.seed}, {runner.rank}' if loop.dataloader.num_workers > 0 else None
            self._batches = NumberedBatches(loop.dataloader.batch_sampler, seed, isinstance(loop, EpochBasedTrainLoop))
            loop.dataloader = loader_like(loop.dataloader, self._batches)
        for each in (loop, runner.val_loop):
            if each is not None:
                each.dataloader.worker_init_fn = partial(start_worker, each.dataloader.worker_init_fn)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Adds the position in the data."""
        if self._batches is None or self._batches.batch_size is None:
            return
        meta, batches = checkpoint['meta'], self._batches.batches
        step = self._batches.batch_size * runner.world_size
        if self._batches.by_epoch:
            images = (meta['iter'] - meta['epoch'] * len(batches)) * step
        else:
            images = self._start[0] + (meta['iter'] - self._start[1]) * step
        meta['data'] = dict(images=images, step=step, length=len(batches), of=len(runner.train_dataloader.dataset))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Corrects the position where batches, processes or data have changed."""
        if not runner._resume:
            return
        loop, meta = runner.train_loop, checkpoint['meta']
        if isinstance(loop, EpochBasedTrainLoop):
            length = len(loop.dataloader)
            done, doubt = _batches_done(meta, checkpoint['message_hub'], loop.dataloader, runner.world_size)
            if doubt:
                runner.logger.warning(f'the checkpoint is at epoch {meta["epoch"]}, iteration {meta["iter"]}: {doubt}. '
                                      'The epoch starts anew')
            meta['iter'] = meta['epoch'] * length + done
        elif isinstance(loop, IterBasedTrainLoop):
            self._start = (_images_done(meta, loop.dataloader, runner), meta['iter'])

    def before_train_epoch(self, runner: Runner) -> None:
        """Sets the position: leaves out what the epoch, or the stream of a loop over iterations, has already had."""
        loop, batches = runner.train_loop, self._batches
        self._hold_sigterm(loop.dataloader)
        if batches is None:
            return
        if batches.by_epoch:
            length = len(batches.batches)
            batches.first = loop.iter
            batches.skip = loop.iter - loop.epoch * length
            if batches.skip:
                runner.logger.info(f'epoch {loop.epoch + 1} goes on after {batches.skip} of its {length} iterations')
            return
        skips_itself = hasattr(loop.dataloader_iterator, 'skip_iter')
        loop.dataloader_iterator = None  # on mmengine 0.10.7 it has workers
        start = 0 if getattr(loop, 'fast_forward_on_resume', False) else self._start[0]
        loop.dataloader_iterator = BatchStream(
            loop.dataloader, start // ((batches.batch_size or 1) * runner.world_size), loop.iter,
            discard=0 if skips_itself else loop.iter)

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
        """The next epoch is whole."""
        self._release_sigterm()
        if self._batches is not None:
            self._batches.skip = 0

    def after_run(self, runner: Runner) -> None:
        """Ends the workers."""
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


def _batches_done(meta: dict, hub: dict, loader: DataLoader, processes: int) -> tuple[int, str]:
    """How many batches of now the epoch of a checkpoint has had, and why this cannot be known, if it cannot."""
    length = len(loader)
    data = meta.get('data')
    if data is None:
        done = meta['iter'] - meta['epoch'] * length
        # Without the position, as other versions save it, only the name tells a checkpoint of the middle of an epoch.
        if 'iter_' not in os.path.basename(str(hub.get('runtime_info', {}).get('last_ckpt'))):
            return 0, f'epochs have {length} iterations now' if done else ''
        return (done, '') if 0 <= done <= length else (0, f'this does not fit epochs of {length} iterations')
    if data['images'] == 0:
        return 0, ''
    if data['of'] != len(loader.dataset):
        return 0, f'the data set had {data["of"]} images and has {len(loader.dataset)} now'
    step = (getattr(loader.batch_sampler, 'batch_size', None) or 0) * processes
    if (data['step'], data['length']) == (step, length):
        return data['images'] // step, ''
    if data['images'] >= data['length'] * data['step']:
        return length, ''
    if type(loader.batch_sampler) is not BatchSampler or not isinstance(loader.batch_sampler.sampler, DefaultSampler):
        return 0, 'batch size or processes have changed, and the sampler gives no position for this'
    if data['images'] % step or data['images'] > length * step:
        return 0, f'{data["images"]} images of the epoch are done, and no batch of {step} images starts there'
    return data['images'] // step, ''


def _images_done(meta: dict, loader: DataLoader, runner: Runner) -> int:
    """How many images of the stream of a loop over iterations a checkpoint has had."""
    step = (getattr(loader.batch_sampler, 'batch_size', None) or 1) * runner.world_size
    data = meta.get('data')
    if data is None or data['step'] == step:
        return meta['iter'] * step if data is None else data['images']
    sampler = loader.batch_sampler.sampler if type(loader.batch_sampler) is BatchSampler else None
    # Each pass of a DefaultSampler is an order of its own; an InfiniteSampler has a single stream.
    of_pass = data['length'] * data['step'] if isinstance(sampler, DefaultSampler) else data['images'] + 1
    passes, rest = divmod(data['images'], of_pass) if isinstance(sampler, (DefaultSampler, InfiniteSampler)) else (0, 0)
    if not sampler or rest % step:
        runner.logger.warning(f'{data["images"]} images are done, in batches of {data["step"]} over all processes, and '
                              f'no batch of {step} images starts there: some of them are read again')
    return passes * len(loader) * step + rest // step * step


def stop_workers(runner: Runner) -> None:
    """Ends the workers of a training in the way that they know; its loaders can be used again."""
    for loop in (runner._train_loop, runner._val_loop):
        loader = getattr(loop, 'dataloader', None)  # a loop that was not built is a dict
        stop_iterator(getattr(loader, '_iterator', None))
        if loader is not None:
            loader._iterator = None
        if isinstance(getattr(loop, 'dataloader_iterator', None), BatchStream):
            loop.dataloader_iterator.stop()


def _kill_workers(process: int) -> None:
    # Python ends what is left of the workers by SIGTERM, which they would outlive.
    if os.getpid() == process:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that is killed
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()


def start_worker(init: Callable[[int], None] | None, worker: int) -> None:
    """Starts a worker of a data loader that a SIGTERM to the whole job does not end at once.

    By default the worker dies, upon which the training fails in the middle of
    an iteration.

    Args:
        init: The loader's own function.
        worker: Index of the worker.
    """
    signal.signal(signal.SIGTERM, _linger)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if init is not None:
        init(worker)


def _linger(number: int, frame: FrameType | None) -> None:
    # SIGALRM ends the process; the training ends its workers sooner.
    signal.alarm(30)
