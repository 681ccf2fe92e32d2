# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Times training steps of detectors on drawn boxes, takes their peak memory, and says what a COCO schedule would take.

Forward, losses, backward and optimizer step of the whole detector, in turns with the other configs; no data is read and
none is needed. What is extrapolated is marked as arithmetic.
"""
import argparse
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from rich.console import Console
from rich.progress import track
from torch import nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.peak_memory import peak_memory
from partialnet_mm.analysis.timing import ratio_in_turns, time_in_turns

#: Images of train2017 that mmdet trains on: those with an object that is no crowd.
COCO_IMAGES = 117266
#: Of train2017: 860001 objects on 118287 images.
OBJECTS = 7


def training_step(config: str, args: argparse.Namespace) -> tuple[nn.Module, Callable[[], dict]]:
    """A detector of a config, its weights random, and a function that trains it for a step and returns its losses."""
    cfg = Config.fromfile(config)
    if cfg.get('default_scope') != 'mmdet':
        raise ValueError(f'{config} is not a config of mmdet: its default_scope is {cfg.get("default_scope")!r}')
    MMLogger.get_instance('training_cost', log_level='WARNING')  # how each weight was initialized is not asked for
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = revert_sync_batchnorm(build_model(cfg))
    model.init_weights()
    model.to(args.device).train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    from mmdet.testing import demo_mm_inputs
    head = cfg.model.get('roi_head', cfg.model).get('bbox_head', {})
    classes = (head[0] if isinstance(head, (list, tuple)) else head).get('num_classes', 80)
    data = demo_mm_inputs(args.batch_size, [(3, *args.shape)] * args.batch_size, [OBJECTS] * args.batch_size,
                          num_classes=classes, with_mask=True, device=args.device)
    return model, lambda: model.train_step(data, wrapper)


def report_memory(config: str, args: argparse.Namespace, answer: 'multiprocessing.SimpleQueue') -> None:
    """Peak memory of building a detector and training it for two steps, in MiB; runs in a process of its own."""
    torch.set_num_threads(args.threads)

    def train() -> None:
        _, step = training_step(config, args)
        step(), step()  # the optimizer's state is there from the first step on

    answer.put(peak_memory(train) / 2**20)


def measure_memory(config: str, args: argparse.Namespace) -> float:
    context = multiprocessing.get_context('spawn')
    answer = context.SimpleQueue()
    process = context.Process(target=report_memory, args=(config, args, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f'the process that measures the memory of {config} ended with {process.exitcode}: '
                           'is there enough of it?')
    return answer.get()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', help='configs of mmdet; times are compared with the last')
    parser.add_argument('--batch-size', type=int, default=2, help='images a step and device (default: 2)')
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1333), metavar=('H', 'W'),
                        help='of the images (default: 800 1333)')
    parser.add_argument('--rounds', type=int, default=3, help='timed steps of each (default: 3)')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='threads on the CPU')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--gpus', type=int, default=8, help='devices of the schedule (default: 8)')
    parser.add_argument('--epochs', type=int, default=12, help='of the schedule (default: 12)')
    args = parser.parse_args()
    for config in args.configs:
        if not os.path.isfile(config):
            parser.error(f'config {config!r} does not exist')
    for name in ('batch_size', 'rounds', 'threads', 'gpus', 'epochs'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1, got {getattr(args, name)}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no GPU')
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    names = [f'{Path(config).parent.name}/{Path(config).stem}' for config in args.configs]
    memory = [measure_memory(config, args) for config in
              track(args.configs, 'memory', console=Console(stderr=True))]
    steps = {name: training_step(config, args)[1] for name, config in zip(names, args.configs)}
    losses = {name: step() for name, step in steps.items()}  # it warms up, too
    times = time_in_turns(steps, args.rounds, warmup=0)
    iterations = math.ceil(COCO_IMAGES / (args.gpus * args.batch_size))
    device = f'{args.threads} threads' if args.device == 'cpu' else torch.cuda.get_device_name()
    print(f'measured: {args.device}, {device}, torch {torch.__version__}, {args.batch_size} images of '
          f'{args.shape[0]} x {args.shape[1]} a step, {OBJECTS} objects each, median of {args.rounds} steps in turns\n')
    print(f'| config | s a step | lowest-highest | over {names[-1]} | peak memory (GiB) |\n|---|---|---|---|---|')
    for name, mebibytes in zip(names, memory):
        ratio = ratio_in_turns(times, name, names[-1])['median']
        print(f'| {name} | {statistics.median(times[name]):.2f} | {min(times[name]):.2f}-{max(times[name]):.2f} | '
              f'{ratio:.2f} | {mebibytes / 1024:.1f} |')
    print('\nlosses of the first step, weights random:')
    for name, values in losses.items():
        print(f'  {name}: ' + ', '.join(f'{key} {values[key].item():.2f}' for key in values if 'loss' in key))
    print(f'\narithmetic, not measured: {COCO_IMAGES} images / ({args.gpus} devices x {args.batch_size}) = '
          f'{iterations} steps an epoch, x {args.epochs} epochs = {iterations * args.epochs} steps; without reading '
          'data, gathering gradients and validation')
    for name in names:
        seconds = statistics.median(times[name])
        print(f'  {name}: {iterations * args.epochs} x {seconds:.2f} s / 3600 = '
              f'{iterations * args.epochs * seconds / 3600:.1f} h on {args.gpus} devices like this')


if __name__ == '__main__':
    main()
