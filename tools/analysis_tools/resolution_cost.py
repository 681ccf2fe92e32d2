# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Times a training at changing resolutions in turns with one at a fixed resolution.

A round is a step at the fixed size and a step at the first size, a step at the fixed size and a step at the second, and
so on, so what slows the machine slows both. --images times the train pipeline of the config in the same way.
"""
import argparse
import os
import statistics
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS
from rich.console import Console
from rich.progress import track
from rich.table import Table

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.timing import ratio_in_turns, time_in_turns
from partialnet_mm.engine.hooks.train_resolution import PAPER_SIZES, TrainResolution
from partialnet_mm.engine.hooks.train_resolution_data import ResolutionDataset

#: What is done for a batch, by the size of its images.
Work = dict[int, Callable[[], object]]


def sizes_of(cfg: Config) -> tuple[int, ...]:
    """What the config's TrainResolutionHook draws from; without one, the sizes of the paper."""
    for hook in cfg.get('custom_hooks') or ():
        if hook['type'] == 'TrainResolutionHook' and 'sizes' in hook:
            return tuple(hook['sizes'])
    return PAPER_SIZES


def training_steps(cfg: Config, sizes: Iterable[int], batch: int, device: str) -> Work:
    """Steps of training the model of a config: forward, backward and the optimizer, with its batch augmentation."""
    from mmpretrain.structures import DataSample
    torch.manual_seed(0)
    model = build_model(cfg).to(device).train()
    wrapper = cfg.optim_wrapper.copy()
    if device == 'cpu' and wrapper.type == 'AmpOptimWrapper':
        wrapper.type = 'OptimWrapper'
    optim_wrapper = build_optim_wrapper(model, wrapper)
    samples = [DataSample().set_gt_label(index % cfg.model.head.num_classes) for index in range(batch)]
    images = {size: torch.randint(256, (batch, 3, size, size), dtype=torch.uint8) for size in sizes}
    return {size: lambda size=size: model.train_step(dict(inputs=images[size], data_samples=samples), optim_wrapper)
            for size in images}


def pipeline_passes(cfg: Config, sizes: Iterable[int], folder: str, count: int) -> Work:
    """Reading images of a folder through the train pipeline of a config, with the same draws at each size."""
    dataset = ResolutionDataset(DATASETS.build(dict(
        type='mmpretrain.CustomDataset', data_prefix=folder, pipeline=cfg.train_dataloader.dataset.pipeline)))
    step = max(len(dataset) // count, 1)

    def read(size: int) -> None:
        np.random.seed(0)
        for index in range(count):
            dataset[index * step % len(dataset), size]

    return {size: lambda size=size: read(size) for size in sizes}


def measure(work: Work, sizes: Sequence[int], fixed: int, rounds: int, images: int) -> list[tuple[str, str]]:
    """Images a second, and time over the fixed size's: of each size, of all together, and of the fixed size."""
    turns = {}
    for size in sizes:
        turns['fixed', size] = work[fixed]
        turns['drawn', size] = work[size]
    times: dict[tuple[str, int], list[float]] = {name: [] for name in turns}
    for turn in track(range(rounds), description='rounds', console=Console(stderr=True)):
        for name, seconds in time_in_turns(turns, rounds=1, warmup=int(turn == 0)).items():
            times[name] += seconds

    def cells(part: Sequence[int]) -> tuple[str, str]:
        """The mean step of these sizes."""
        means = {kind: [statistics.mean(steps) for steps in zip(*[times[kind, size] for size in part])]
                 for kind in ('fixed', 'drawn')}
        ratio = ratio_in_turns(means, 'drawn', 'fixed')
        return (f'{images / statistics.median(means["drawn"]):.1f}',
                f'{ratio["median"]:.2f} ({ratio["low"]:.2f}-{ratio["high"]:.2f})')

    steps = statistics.median(seconds for size in sizes for seconds in times['fixed', size])
    return [*[cells([size]) for size in sizes], cells(sizes), (f'{images / steps:.1f}', '1')]


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a classifier')
    parser.add_argument('--sizes', type=int, nargs='+', help="sizes that are drawn from (default: the config's)")
    parser.add_argument('--fixed', type=int, default=224, help='size that they are compared with (default: 224)')
    parser.add_argument('--batch', type=int, default=32, help='images a step (default: 32)')
    parser.add_argument('--rounds', type=int, default=7, help='timed rounds (default: 7)')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='threads on the CPU')
    parser.add_argument('--images', metavar='FOLDER', help='folder of class folders, to time the train pipeline too')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser, parser.parse_args()


def main() -> None:
    parser, args = parse_args()
    if not os.path.isfile(args.config):
        parser.error(f'config {args.config!r} does not exist')
    if args.images and not os.path.isdir(args.images):
        parser.error(f'--images {args.images!r} is not a folder')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no GPU')
    cfg = Config.fromfile(args.config)
    sizes = tuple(args.sizes or sizes_of(cfg))
    try:
        every = {*TrainResolution(sizes).sizes, *TrainResolution([args.fixed]).sizes}
    except ValueError as error:
        parser.error(str(error))

    torch.set_num_threads(args.threads)
    names = ['step: images / s', 'time']
    parts = [measure(training_steps(cfg, every, args.batch, args.device), sizes, args.fixed, args.rounds, args.batch)]
    if args.images:
        names += ['pipeline: images / s', 'time']
        parts.append(measure(pipeline_passes(cfg, every, args.images, args.batch), sizes, args.fixed, args.rounds,
                             args.batch))
    pixels = [(size / args.fixed)**2 for size in sizes]
    rows = [*map(str, sizes), 'drawn', f'fixed {args.fixed}']
    table = Table('resolution', 'pixels', *names)
    for name, relative, *cells in zip(rows, [*pixels, statistics.mean(pixels), 1], *parts):
        table.add_row(name, f'{relative:.2f}', *[text for pair in cells for text in pair],
                      end_section=name == rows[len(sizes) - 1])
    table.caption = (f'{args.device}, {args.threads} threads, batch {args.batch}, {args.rounds} rounds in turns, torch '
                     f'{torch.__version__}; pixels and times over those of {args.fixed}, with quartiles')
    Console().print(table)


if __name__ == '__main__':
    main()
