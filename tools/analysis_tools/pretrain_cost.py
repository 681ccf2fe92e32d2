# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Prints what pretraining on ImageNet computes, and the GPU-hours that this would take at a given speed, as Markdown.

This is arithmetic, not a measurement: the multiply-adds of the network as trained, mean over the resolutions, three
times for forward and backward, for every image of every epoch. Two operations are one multiply-add.
"""
import argparse
import os
import statistics
from pathlib import Path

from mmengine.config import Config

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.flops import count_multiply_adds
from partialnet_mm.engine.hooks.train_resolution import PAPER_SIZES

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'pretrain'
VARIANTS = ('t0', 't1', 't2', 's', 'm', 'l')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', default=[CONFIGS / f'partialnet_{name}_in1k.py' for name in VARIANTS],
                        help='configs of classifiers (default: the six of the paper)')
    parser.add_argument('--sizes', type=int, nargs='+', default=PAPER_SIZES,
                        help=f'resolutions that are drawn from (default: {" ".join(map(str, PAPER_SIZES))})')
    parser.add_argument('--images', type=int, default=1281167, help='images of an epoch (default: 1281167, ImageNet)')
    parser.add_argument('--tflops', type=float, default=10.,
                        help='operations that a GPU keeps up in this training, 10^12 a second (default: 10)')
    args = parser.parse_args()
    for config in args.configs:
        if not os.path.isfile(config):
            parser.error(f'config {str(config)!r} does not exist')

    print(f'| config | multiply-adds at 224 (G) | mean of the resolutions (G) | training, an image (G) | '
          f'training (10^18) | GPU-hours at {args.tflops:g} TFLOP/s |\n|---|---|---|---|---|---|')
    for config in args.configs:
        cfg = Config.fromfile(config)
        cfg.model.train_cfg = None  # no batch augmentation: it is a forward pass that is counted
        model = build_model(cfg)
        at_224, *counts = (count_multiply_adds(model, (1, 3, size, size)) for size in (224, *args.sizes))
        mean = statistics.mean(counts)
        total = 3 * mean * args.images * cfg.train_cfg.max_epochs
        hours = 2 * total / (args.tflops * 1e12) / 3600
        print(f'| `{os.path.basename(config)}` | {at_224 / 1e9:.3f} | {mean / 1e9:.3f} | {3 * mean / 1e9:.2f} | '
              f'{total / 1e18:.2f} | {hours:.0f} |')


if __name__ == '__main__':
    main()
