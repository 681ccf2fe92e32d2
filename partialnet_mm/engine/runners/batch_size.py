# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The batch of an optimizer step: images per GPU, GPUs, and steps whose gradients are accumulated."""
import copy
import os

from mmengine.config import Config

from ...config_types import type_name

#: The variable that holds the number of processes, by launcher.
_PROCESSES = dict(pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')


def count_processes(launcher: str) -> int:
    """Processes that a launcher has started, before they communicate."""
    return int(os.environ.get(_PROCESSES.get(launcher, ''), '1'))


def apply_images_per_gpu(cfg: Config, processes: int) -> Config:
    """Sets images per GPU and accumulated steps, so that the batch stays ``auto_scale_lr.base_batch_size``.

    Args:
        cfg: Any config. Its top-level key ``images_per_gpu`` is the number, or
            None or missing: then the config stays as it is.
        processes: Number of GPUs.

    Returns:
        A changed copy, or ``cfg`` itself.

    Raises:
        ValueError: If the number does not divide the batch among the GPUs, the
            learning rate is to be scaled, or a loop or schedule counts
            iterations, which accumulation makes smaller.
    """
    images = cfg.get('images_per_gpu')
    if images is None:
        return cfg
    batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if not batch:
        raise ValueError('images_per_gpu needs the batch of the recipe as auto_scale_lr.base_batch_size, and the '
                         'config has none: set train_dataloader.batch_size and optim_wrapper.accumulative_counts')
    if isinstance(images, bool) or not isinstance(images, int) or images < 1 or batch % (images * processes):
        share, rest = divmod(batch, processes)
        allowed = f'the divisors of {share}' if not rest else f'none, because {processes} GPUs do not divide it'
        raise ValueError(f'images_per_gpu={images!r} does not give the batch of {batch} on {processes} '
                         f'GPU{"s" * (processes > 1)}; allowed are {allowed}')
    if cfg.auto_scale_lr.get('enable'):
        raise ValueError(f'images_per_gpu keeps the batch of {batch}, so there is no learning rate to scale: leave out '
                         '--auto-scale-lr, or set train_dataloader.batch_size instead')
    counts = batch // (images * processes)
    schedulers = cfg.get('param_scheduler') or ()
    schedulers = schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]
    if counts > 1 and (not cfg.train_cfg.get('by_epoch', 'Iter' not in type_name(cfg.train_cfg.get('type')))
                       or any(not scheduler.get('by_epoch', True) for scheduler in schedulers)):
        raise ValueError(f'images_per_gpu={images} accumulates {counts} iterations per step, and this config counts '
                         'iterations in its loop or in param_scheduler: set train_dataloader.batch_size, '
                         'optim_wrapper.accumulative_counts and these numbers')
    cfg = copy.deepcopy(cfg)
    cfg.train_dataloader.batch_size = images
    cfg.optim_wrapper.accumulative_counts = counts
    return cfg


def describe_batch(cfg: Config, processes: int) -> str:
    """The batch in one line, and what to do where it is not the recipe's.

    Args:
        cfg: Config of a training.
        processes: Number of GPUs.
    """
    loader, wrapper = cfg.train_dataloader, cfg.get('optim_wrapper') or {}
    images, counts = loader.get('batch_size'), wrapper.get('accumulative_counts', 1)
    if images is None:  # a batch sampler of the config's own
        return 'batch: as the batch_sampler of train_dataloader makes it'
    batch = images * processes * counts
    line = f'batch: {images} images per GPU x {processes} GPU(s) x {counts} accumulated step(s) = {batch}'
    scale = cfg.get('auto_scale_lr') or {}
    recipe = scale.get('base_batch_size', batch)
    if batch == recipe:
        return line
    if scale.get('enable'):
        return f'{line}; the learning rate is scaled from that of {recipe} by images per GPU x GPUs'
    return (f'{line}; the learning rate is that of {recipe}: --auto-scale-lr scales it, --cfg-options '
            f'images_per_gpu=N keeps the batch of {recipe}')
