# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Trains a model from a config: classifier, detector or segmentor."""
import argparse
import os

import torch
from mmengine.config import Config

from partialnet_mm.analysis.report import ReportHook
from partialnet_mm.engine.runners.batch_size import apply_images_per_gpu, count_processes, describe_batch
from partialnet_mm.engine.runners.command_line import (
    add_config_arguments,
    add_runner_arguments,
    build_runner,
    check_data,
    leave,
    load_runner_config,
)
from partialnet_mm.engine.runners.config_file import ConfigError, StartHook, config_errors
from partialnet_mm.engine.runners.user_errors import ToolParser, command

SPLITS = ('train', 'val')


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = ToolParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (needs a GPU)')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help="scale the learning rate from the config's auto_scale_lr.base_batch_size to the actual "
                        'batch size')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='continue from a checkpoint; without a name, from the newest in the work folder')
    add_runner_arguments(parser)
    return parser, parser.parse_args()


def prepare(parser: argparse.ArgumentParser, args: argparse.Namespace, starts_here: bool = True) -> Config:
    """The config of a command line, after all checks that need no model; tools/env/launch.py calls this, too.

    A machine where no process starts, such as Slurm's login node, needs no GPU.
    """
    if args.amp and starts_here and not torch.cuda.is_available():
        parser.error('--amp needs a GPU, and torch sees none')
    if args.resume not in (None, 'auto') and '://' not in args.resume and not os.path.exists(args.resume):
        parser.error(f'--resume: checkpoint {args.resume!r} does not exist; without a name, --resume goes on from the '
                     'newest in the work folder')
    cfg = load_runner_config(parser, args, SPLITS, starts_here)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ConfigError(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    try:
        cfg = apply_images_per_gpu(cfg, count_processes(args.launcher))
    except ValueError as error:
        parser.error(f'{args.config}: {error}')
    # torchrun starts the processes again after one of them failed.
    restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')) > 0
    if args.resume or restarted:
        cfg.resume = True
        cfg.load_from = None if restarted or args.resume == 'auto' else args.resume
    if not args.skip_preflight:
        check_data(parser, cfg, SPLITS)
    return cfg


@command
def main() -> None:
    parser, args = parse_args()
    cfg = prepare(parser, args)
    start = StartHook()
    with config_errors(args.config, start):
        # Heads may differ: other classes, or another kind of head.
        runner = build_runner(cfg, least_fit=0.5, trust_checkpoint=args.trust_checkpoint)
        runner.logger.info(describe_batch(cfg, runner.world_size))
        runner.register_hook(start)
        runner.register_hook(ReportHook())
        runner.train()


if __name__ == '__main__':
    main()
    leave()
