# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Where the time of a data loader's worker goes, and how many workers feed a GPU."""
import json
import math
import statistics
import tempfile
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from PIL import Image

from ..config_types import complete_types, type_name
from .commands import add_machine_arguments, existing_file, positive
from .measure import Spread, markdown_table, progress, ratio

#: Files of a folder that are taken for photographs.
ENDINGS = ('.jpg', '.jpeg', '.png')
#: A JPEG file of ImageNet of 500 x 375 pixels has about 110 kB; this quality gives fewer.
QUALITY = 92


def plain_pipeline(pipeline: Sequence[dict]) -> list[dict]:
    """A pipeline with the steps of mmpretrain and mmdet in place of this package's, which give what those give."""
    steps = []
    for step in pipeline:
        kind, arguments = type_name(step['type']), {key: value for key, value in step.items() if key != 'type'}
        if kind == 'FastRandomResizedCrop':
            flip_prob = arguments.pop('flip_prob', 0.0)
            arguments.pop('scaled_decoding', None)
            loading = {key: value for key, value in arguments.items() if key == 'backend_args'}
            arguments.pop('backend_args', None)
            steps.append(dict(loading, type='LoadImageFromFile'))
            steps.append(dict(dict(interpolation='bicubic'), type='RandomResizedCrop', backend='pillow', **arguments))
            if flip_prob:
                steps.append(dict(type='RandomFlip', prob=flip_prob, direction='horizontal'))
        elif kind == 'FastResizeEdge':
            steps.append(dict(dict(interpolation='bicubic'), type='ResizeEdge', edge='short', backend='pillow',
                              **arguments))
        elif kind in ('FastRandAugment', 'FastLoadAnnotations', 'FastRandomFlip'):
            steps.append(dict(arguments, type=kind.removeprefix('Fast')))
        else:
            steps.append(dict(step))
    return steps


def at_resolution(pipeline: Sequence[dict], size: int) -> list[dict]:
    """A pipeline whose random resized crop gives images of a side."""
    return [dict(step, scale=size) if type_name(step['type']).endswith('RandomResizedCrop') else step
            for step in pipeline]


def write_photographs(source: Path, folder: Path, size: tuple[int, int], limit: int) -> list[Path]:
    """Copies photographs of a folder, also of those in it, as JPEG files of one width and height.

    Raises:
        ValueError: If the folder has none.
    """
    return [_write_photograph(file, folder / f'{index}.jpg', size)
            for index, file in enumerate(find_photographs(source, limit))]


def find_photographs(source: Path, limit: int) -> list[Path]:
    """Files of photographs in a folder and those in it, evenly spread over the sorted files.

    Raises:
        ValueError: If it has none.
    """
    files = sorted(file for file in source.rglob('*') if file.suffix.lower() in ENDINGS)
    if not files:
        raise ValueError(f'{source} holds no files that end in {", ".join(ENDINGS)}')
    return files[::math.ceil(len(files) / limit)]


def _write_photograph(source: Path, target: Path, size: tuple[int, int]) -> Path:
    with Image.open(source) as image:
        image.convert('RGB').resize(size, Image.Resampling.BICUBIC).save(target, quality=QUALITY)
    return target


def coco_samples(cfg: Config, images: Path, annotations: Path, limit: int) -> list[dict]:
    """What a config's training pipeline gets for each image of an annotation file with classes of its own."""
    classes = [category['name'] for category in json.loads(annotations.read_text())['categories']]
    dataset = DATASETS.build(dict(
        type='CocoDataset', ann_file=str(annotations), data_prefix=dict(img=str(images)), pipeline=[],
        metainfo=dict(classes=tuple(classes)), filter_cfg=cfg.train_dataloader.dataset.get('filter_cfg')))
    return [dataset.get_data_info(index) for index in range(min(limit, len(dataset)))]


def time_pipelines(pipelines: Mapping[object, Sequence[dict]],
                   samples: Sequence[dict],
                   rounds: int,
                   clock: Callable[[], float] = time.process_time) -> dict[object, list[list[float]]]:
    """Times the steps of pipelines in alternating rounds, each on the same images with the same random numbers.

    Args:
        pipelines: Their steps as dicts, by name.
        samples: What the first step gets.
        rounds: Timed rounds, after one that is not timed.
        clock: Gives seconds. Defaults to the time of the process on the CPU, which other processes do not change.

    Returns:
        Seconds per image, for each name, round and step.
    """
    built = {name: [TRANSFORMS.build(dict(step)) for step in steps] for name, steps in pipelines.items()}
    times: dict[object, list[list[float]]] = {name: [] for name in pipelines}
    for index in progress(range(-1, rounds), 'timing pipelines in alternating rounds'):
        for name, steps in built.items():
            seconds = [0.0] * len(steps)
            np.random.seed(max(index, 0))
            for sample in samples:
                results: Any = _copy(sample)
                for position, step in enumerate(steps):
                    start = clock()
                    results = step(results)
                    seconds[position] += clock() - start
            if index >= 0:
                times[name].append([second / len(samples) for second in seconds])
    return times


def _copy(sample: dict) -> dict:
    # As deep as steps change it: they mark objects as ignored.
    copy = dict(sample)
    if 'instances' in copy:
        copy['instances'] = [dict(instance) for instance in copy['instances']]
    return copy


def workers_needed(images_per_second: float, of_a_worker: float) -> int:
    """Workers that together read as many images per second as one GPU takes."""
    return math.ceil(images_per_second / of_a_worker)


def resolutions_of(cfg: Config) -> list[int]:
    """The sides of a classifier's training images; empty for a detector, whose images have sizes of their own."""
    for hook in cfg.get('custom_hooks') or ():
        if type_name(hook['type']) == 'TrainResolutionHook' and hook.get('sizes'):
            return list(hook['sizes'])
    return [step['scale'] for step in cfg.train_dataloader.dataset.pipeline
            if type_name(step['type']).endswith('RandomResizedCrop')]


class PipelineTimes:
    """Times of a config's training pipeline, as it is and from the steps of mmpretrain or mmdet.

    Args:
        cfg: A config of mmpretrain or mmdet.
        samples: What the first step gets.
        sizes: Sides of the images, empty for a detector.
        rounds: Timed rounds.
        clock: As for :func:`time_pipelines`.
    """

    def __init__(self, cfg: Config, samples: Sequence[dict], sizes: Sequence[int], rounds: int,
                 clock: Callable[[], float] = time.process_time) -> None:
        init_default_scope(cfg.default_scope)
        pipeline = [dict(step) for step in cfg.train_dataloader.dataset.pipeline]
        forms = dict(own=pipeline, plain=plain_pipeline(pipeline))
        #: Names of the steps of both forms.
        self.steps = {form: [type_name(step['type']) for step in steps] for form, steps in forms.items()}
        self.sizes = list(sizes) or [None]
        pipelines = {(form, size): steps if size is None else at_resolution(steps, size)
                     for size in self.sizes for form, steps in forms.items()}
        self.times = time_pipelines(pipelines, samples, rounds, clock)

    def milliseconds(self, form: str) -> list[float]:
        """Of each step per image, mean over the sizes of the medians of the rounds."""
        medians = [[statistics.median(step) for step in zip(*self.times[form, size])] for size in self.sizes]
        return [1000 * statistics.mean(step) for step in zip(*medians)]

    def _totals(self, form: str, size: int | None) -> list[float]:
        """Seconds per image in each round, for a size, or for the mean of all."""
        if (form, size) in self.times:
            return [sum(steps) for steps in self.times[form, size]]
        return [statistics.mean(sum(steps) for steps in of_round)
                for of_round in zip(*(self.times[form, each] for each in self.sizes))]

    def images_per_second(self, size: int | None = None, form: str = 'own') -> float:
        """Of one worker, for a size, or for all of them drawn with equal probability."""
        return 1 / statistics.median(self._totals(form, size))

    def speedup(self, size: int | None = None) -> Spread:
        """Time of the plain pipeline over the time of the config's: median and quartiles of the rounds."""
        return ratio({form: self._totals(form, size) for form in ('own', 'plain')}, 'plain', 'own')


def add_arguments(parser: ArgumentParser) -> None:
    """Adds what :func:`report` needs, and what a measurement of training steps needs."""
    add_machine_arguments(parser, rounds=5)
    parser.add_argument('configs', type=existing_file, nargs='+', metavar='CONFIG', help='of mmpretrain or mmdet')
    parser.add_argument('--images', type=existing_folder, required=True, metavar='DIR', help='folder with photographs')
    parser.add_argument('--annotations', type=existing_file, metavar='FILE',
                        help="COCO's annotations of the photographs, for configs of mmdet")
    parser.add_argument('--image-size', type=positive, nargs=2, metavar=('W', 'H'),
                        help='resize the photographs to this size before, for configs of mmpretrain')
    parser.add_argument('--limit', type=positive, default=100, help='photographs at most (default: %(default)s)')
    parser.add_argument('--sizes', type=positive, nargs='+', metavar='SIDE',
                        help="sides of a classifier's training images (default: the config's)")
    parser.add_argument('--gpus', type=positive, default=8, help='GPUs to feed (default: %(default)s)')
    parser.add_argument('--images-per-second', type=positive, nargs='+', default=[], metavar='RATE',
                        help='that one GPU trains, as the log of a training shows it')
    parser.add_argument('--step-batch', type=positive, metavar='N',
                        help='measure the images per second of this device by training steps of N random images')


def report(args: Namespace, rates: Mapping[Path, float]) -> str:
    """Tables of the time of each step, the images per second of a worker, and the workers that feed the GPUs.

    PyTorch and OpenCV compute with one thread, as they do in a worker.

    Args:
        args: From a parser with :func:`add_arguments`.
        rates: Images per second of a GPU for each config, where they have been measured.

    Raises:
        ValueError: If a config is neither of mmpretrain nor of mmdet, a folder holds no photographs, or the annotations
            for a config of mmdet are missing.
    """
    with _one_thread(), tempfile.TemporaryDirectory() as folder:
        measured = {config: _measure(complete_types(Config.fromfile(config)), args, Path(folder))
                    for config in args.configs}
    labels = {config: f'{config.parent.name}/{config.stem}' for config in args.configs}
    parts = []
    for config, times in measured.items():
        rows = []
        for form, label in (('own', 'config'), ('plain', 'plain')):
            spent = times.milliseconds(form)
            rows += [[label, step, f'{second:.2f}', f'{second / sum(spent):.0%}']
                     for step, second in zip(times.steps[form], spent)]
        parts.append(f'{labels[config]}\n\n'
                     + markdown_table(['pipeline', 'step', 'CPU time per image (ms)', 'share'], rows))
    rows = [[labels[config], 'all' if size is None else size, f'{times.images_per_second(size, "plain"):.0f}',
             f'{times.images_per_second(size):.0f}', times.speedup(size).text()]
            for config, times in measured.items() for size in dict.fromkeys([*times.sizes, None])]
    parts.append('images per second of one worker on one core, without waiting for the disk\n\n' + markdown_table(
        ['config', 'side', 'plain', 'config', 'config over plain (quartiles)'], rows))
    rows = []
    for config, times in measured.items():
        of_gpus = [(rate, 'given') for rate in args.images_per_second]
        if config in rates:
            of_gpus.append((rates[config], 'measured'))
        for rate, source in of_gpus:
            workers = workers_needed(rate, times.images_per_second())
            rows.append([labels[config], f'{rate:.0f} ({source})', f'{times.images_per_second():.0f}', workers,
                         workers * args.gpus])
    if rows:
        parts.append(markdown_table(['config', 'images/s of a GPU', 'images/s of a worker', 'workers per GPU',
                                     f'workers of {args.gpus} GPUs'], rows))
    return '\n\n'.join(parts)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    yield
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


def _measure(cfg: Config, args: Namespace, folder: Path) -> PipelineTimes:
    init_default_scope(cfg.default_scope)
    if cfg.default_scope == 'mmdet':
        if args.annotations is None:
            raise ValueError('a config of mmdet needs --annotations, the annotation file of the photographs')
        samples = coco_samples(cfg, args.images, args.annotations, args.limit)
        return PipelineTimes(cfg, samples, [], args.rounds)
    if cfg.default_scope != 'mmpretrain':
        raise ValueError(f'configs must be of mmpretrain or mmdet, got one with default_scope {cfg.default_scope!r}')
    files = sorted(folder.iterdir())  # written for the config before
    if not files:
        files = (find_photographs(args.images, args.limit) if args.image_size is None else
                 write_photographs(args.images, folder, tuple(args.image_size), args.limit))
    samples = [dict(img_path=str(file), gt_label=0) for file in files]
    return PipelineTimes(cfg, samples, args.sizes or resolutions_of(cfg), args.rounds)


def existing_folder(text: str) -> Path:
    """The path of a folder."""
    if not Path(text).is_dir():
        raise ArgumentTypeError(f'folder {text!r} does not exist')
    return Path(text)
