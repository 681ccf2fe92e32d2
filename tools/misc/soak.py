# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Trains a detection config for some minutes with ever-changing image sizes, and measures whether memory grows.

Exits with 1 if the memory of the training process grows by more than the limit.
"""
import gc
import sys
import tempfile
import time

import numpy as np
import psutil
import torch
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from partialnet_mm.engine.runners.command_line import add_config_arguments, load_config
from partialnet_mm.engine.runners.user_errors import ToolParser, command

#: Shorter sides that are drawn from, pixels.
SIZES = range(160, 400, 8)


class MemoryHook(Hook):
    """Records the memory of the training and ends it when its time is over.

    Args:
        minutes: How long to train.
        interval: Seconds between two records. Defaults to 10.
    """

    def __init__(self, minutes: float, interval: float = 10.) -> None:
        self.process = psutil.Process()
        self.end = time.monotonic() + 60 * minutes
        self.interval = interval
        self.next = time.monotonic() + interval
        self.iterations = 0
        self.shapes: set = set()
        #: Seconds, MiB of the training process, MiB of its data loader's workers, Python objects.
        self.notes: list[tuple[float, float, float, int]] = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict = None, outputs: dict = None) -> None:
        """Records if it is time."""
        self.iterations += 1
        self.shapes.update(tuple(image.shape[-2:]) for image in data_batch['inputs'])
        now = time.monotonic()
        if now >= self.next:
            self.next = now + self.interval
            workers = sum(child.memory_info().rss for child in self.process.children(recursive=True))
            self.notes.append((now, self.process.memory_info().rss / 2**20, workers / 2**20, len(gc.get_objects())))
            seconds, own, loaders, objects = self.notes[-1]
            print(f'{self.iterations} iterations, {(self.end - now) / 60:.1f} min left: {own:.0f} MiB, '
                  f'workers {loaders:.0f} MiB, {objects} objects, {len(self.shapes)} image sizes', flush=True)
        if now >= self.end:
            raise KeyboardInterrupt


def slope(notes: list[tuple], column: int) -> float:
    """Growth per hour by least squares, over the notes after the first quarter, in which caches fill."""
    late = np.array(notes[len(notes) // 4:], dtype=float)
    return float(np.polyfit(late[:, 0] / 3600, late[:, column], 1)[0])


def vary_sizes(node: object) -> None:
    """Gives every pipeline of a data set one resizing, to a random size, after its annotations are loaded."""
    if isinstance(node, dict):
        for child in node.values():
            vary_sizes(child)
        steps = node.get('pipeline')
        if steps:
            steps = [step for step in steps if step['type'] not in ('Resize', 'RandomChoiceResize', 'RandomResize')]
            after = [step['type'].endswith('LoadAnnotations') for step in steps].index(True) + 1
            resize = dict(type='RandomChoiceResize', scales=[(700, size) for size in SIZES], keep_ratio=True)
            node['pipeline'] = [*steps[:after], resize, *steps[after:]]


@command
def main() -> int:
    parser = ToolParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--minutes', type=float, default=20., help='how long to train (default: 20)')
    parser.add_argument('--limit', type=float, default=100., metavar='MIB', help='growth per hour that is too much, '
                        'after the first quarter of the time (default: 100)')
    args = parser.parse_args()
    if args.minutes < 1:
        parser.error(f'--minutes must be at least 1, got {args.minutes}')
    torch.set_num_threads(1)
    cfg = load_config(parser, args, ('train', ))
    vary_sizes(cfg.train_dataloader)
    cfg.train_cfg.max_epochs = 10**6
    cfg.train_cfg.val_interval = 10**6
    cfg.launcher = 'none'
    memory = MemoryHook(args.minutes)
    with tempfile.TemporaryDirectory() as work_dir:
        cfg.work_dir = work_dir
        cfg.log_level = 'WARNING'
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        runner.register_hook(memory, priority='LOWEST')
        try:
            runner.train()
        except KeyboardInterrupt:
            if time.monotonic() < memory.end:
                raise
    own, workers, objects = (slope(memory.notes, column) for column in (1, 2, 3))
    late = [note[1] for note in memory.notes[len(memory.notes) // 4:]]
    print(f'{args.minutes:g} minutes, {memory.iterations} iterations, {len(memory.shapes)} image sizes\n'
          f'training process: {min(late):.0f} to {max(late):.0f} MiB, slope {own:+.1f} MiB per hour\n'
          f'workers: slope {workers:+.1f} MiB per hour\n'
          f'Python objects: slope {objects:+.0f} per hour')
    return int(own > args.limit)


if __name__ == '__main__':
    sys.exit(main())
