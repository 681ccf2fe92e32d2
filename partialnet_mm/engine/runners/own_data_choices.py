# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Settings of an own-data training that follow from the data and the machine, where the config has 'auto'."""
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict

AUTO = 'auto'
#: Iterations that random weights need on the smallest data sets, and epochs on large ones.
LEAST_ITERATIONS = 340
EPOCHS = dict(random=24, pretrained=12)
#: Learning rate of AdamW at a batch of 4; it grows with the square root of the batch.
RATES = dict(random=1e-3, pretrained=1e-4)
#: Pixels that one object in ten may be smaller than, once images are resized.
SMALL_OBJECT = 48
#: Longer and shorter side of resized images: at least the first of them, at most both.
LEAST_SIDE, MOST_SIDES = 480, (1333, 800)
#: The same for crops of segmentation.
LEAST_CROP, MOST_CROP = 64, 512


class DataFacts(NamedTuple):
    """What a data set is like: its number of images, their median width and height, and its small objects."""

    images: int
    width: float
    height: float
    #: Square root of the box area in pixels that one object in ten is below; None without objects.
    small_object: float | None = None


class Machine(NamedTuple):
    """What a process trains on."""

    #: Memory of its GPU in GiB; None on a CPU.
    gpu_memory: float | None
    #: CPU cores for all processes of this machine together.
    cores: int
    #: Processes of the training, on all machines, and on this one.
    processes: int
    local_processes: int


#: What can be chosen.
KEYS = ('batch_size', 'num_workers', 'times', 'end', 'milestones', 'lr', 'base_batch_size', 'size', 'scale', 'scales',
        'crop_size')
#: Stands for data that cannot be read: a config is loaded for its model only.
UNKNOWN_DATA = DataFacts(images=1000, width=1333, height=800)


def this_machine() -> Machine:
    """Reads the machine, and how many processes torchrun or Slurm have started."""
    processes = int(os.environ.get('WORLD_SIZE') or os.environ.get('SLURM_NTASKS') or 1)
    local = int(os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE') or processes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
    return Machine(memory, cores, processes, local)


def has_choices(cfg: Config) -> bool:
    """Whether a setting that :func:`fill_choices` knows is 'auto'."""
    return any(node.get(key) == AUTO for _, node in _dicts(cfg) for key in KEYS)


def fill_choices(cfg: Config, data: DataFacts, machine: Machine) -> dict[str, Any]:
    """Replaces every 'auto' of a config, and leaves what the user has set.

    - Images per process: 4 over all processes on CPUs; on a GPU one per 4 GiB of memory, a power of two from 2 to 16.
    - Workers that load images: 1 per process on CPUs, otherwise the cores of the machine, up to 8.
    - Passes over the images: as many as give 340 iterations, at least 24 passes from random weights and 12 from a
      checkpoint. They are spread over the epochs of the config by ``RepeatDataset``.
    - Warm-up: a tenth of all iterations, from 30 to 500.
    - Learning rate: 1e-3 from random weights and 1e-4 from a checkpoint at a batch of 4, times the square root of the
      batch.
    - Image scale: nine objects in ten are at least 48 pixels large, the longer side has 480 to 1333 pixels, the shorter
      at most 800, and no image is enlarged more than twice.
    - Crop of segmentation: the shorter side of the median image, from 64 to 512 pixels.

    Args:
        cfg: The config, which is changed.
        data: The training data.
        machine: What the process trains on.

    Returns:
        What was chosen, by the name of the setting in the config.
    """
    chosen: dict[str, Any] = {}
    nodes = dict(_dicts(cfg))

    def choose(name: str, key: str, value: Any) -> None:
        if name in nodes and nodes[name].get(key) == AUTO:
            nodes[name][key] = value
            if not name.split('.')[0].endswith('_pipeline'):  # a variable of the config, which no one reads
                chosen[f'{name}.{key}'] = value

    choose('train_dataloader', 'batch_size', _batch_size(machine))
    workers = 1 if machine.gpu_memory is None else max(1, min(8, machine.cores // machine.local_processes))
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        choose(loader, 'num_workers', workers)

    epochs = nodes.get('train_cfg', {}).get('max_epochs')
    if epochs and 'train_dataloader' in nodes:
        weights = 'pretrained' if cfg.get('checkpoint') else 'random'
        batch = cfg.train_dataloader.batch_size * machine.processes
        iterations = max(LEAST_ITERATIONS, EPOCHS[weights] * data.images / batch)
        choose('train_dataloader.dataset', 'times', max(1, round(iterations * batch / max(1, data.images) / 12)))
        iterations = epochs * math.ceil(data.images * cfg.train_dataloader.dataset.get('times', 1) / batch)
        for name in [name for name in nodes if name.startswith('param_scheduler.')]:
            warm_up = not nodes[name].get('by_epoch', True)
            choose(name, 'end', min(500, max(30, iterations // 10)) if warm_up else epochs)
            # Two thirds and eleven twelfths of the epochs: 8 and 11 of 12.
            choose(name, 'milestones', sorted({max(1, round(epochs * part / 12)) for part in (8, 11)}))
        choose('optim_wrapper.optimizer', 'lr', float(f'{RATES[weights] * math.sqrt(batch / 4):.2g}'))
        choose('auto_scale_lr', 'base_batch_size', batch)

    scale, crop = _image_scale(data), _crop(data)
    for name in nodes:
        choose(name, 'scale', scale)
        choose(name, 'scales', [(scale[0], round(scale[1] * factor)) for factor in (0.8, 0.9, 1., 1.1)])
        choose(name, 'crop_size', (crop, crop))
    choose('model.data_preprocessor', 'size', (crop, crop))
    return chosen


def choices_in_use(cfg: Config) -> dict[str, Any]:
    """What was chosen, of a config that :func:`apply_own_data_settings` returned, as far as nobody has changed it."""
    nodes = dict(_dicts(cfg))
    chosen = (cfg.get('own_data_choices') or {}).get('chosen') or {}
    return {name: value for name, value in chosen.items()
            if nodes.get(name.rpartition('.')[0], {}).get(name.rpartition('.')[2]) == value}


def _batch_size(machine: Machine) -> int:
    if machine.gpu_memory is None:
        return max(1, round(4 / machine.processes))
    return 2**int(min(4, max(1, math.log2(machine.gpu_memory / 4))))


def _image_scale(data: DataFacts) -> tuple[int, int]:
    """Longer and shorter side for mmcv's Resize, which keeps the ratio of the image."""
    longer, shorter = max(data.width, data.height), min(data.width, data.height)
    factor = SMALL_OBJECT / data.small_object if data.small_object else 1.
    factor = min(max(factor, LEAST_SIDE / longer), MOST_SIDES[0] / longer, MOST_SIDES[1] / shorter, 2.)
    # The shorter side decides; the longer one has room for images of other ratios.
    return min(MOST_SIDES[0], round(1.25 * longer * factor)), max(32, 10 * round(shorter * factor / 10))


def _crop(data: DataFacts) -> int:
    return int(max(LEAST_CROP, min(MOST_CROP, min(data.width, data.height) // 32 * 32)))


def _dicts(node: Any, name: str = '') -> Iterator[tuple[str, ConfigDict]]:
    """All dicts of a config by their names on the command line, such as 'param_scheduler.0'."""
    if isinstance(node, (dict, Config)):
        yield name, node
    for key, child in (node.items() if isinstance(node, (dict, Config)) else
                       enumerate(node) if isinstance(node, (list, tuple)) else ()):
        yield from _dicts(child, f'{name}.{key}' if name else str(key))
