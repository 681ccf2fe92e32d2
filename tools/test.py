# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Tests a checkpoint: prints the metrics, writes the predictions to a file, draws them."""
import argparse
import logging
import os
from numbers import Real
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from partialnet_mm.checkpoint.atomic import refuse_overwrite
from partialnet_mm.config_types import type_name
from partialnet_mm.engine.runners.command_line import (
    add_config_arguments,
    add_runner_arguments,
    build_runner,
    check_data,
    leave,
    load_runner_config,
)
from partialnet_mm.engine.runners.config_file import ConfigError, StartHook, config_errors
from partialnet_mm.engine.runners.tta import augment_test
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models import merge_model
from partialnet_mm.preflight import image_folders


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = ToolParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file; with --trust-checkpoint also an address')
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions to this file')
    parser.add_argument('--show-dir', metavar='DIR', help='draw the predictions into this folder, which must be new '
                        'or empty')
    parser.add_argument('--force', action='store_true',
                        help='overwrite the file of --out, and draw into a --show-dir that is not empty; the images '
                        'of the test are never overwritten')
    parser.add_argument('--deploy', action='store_true',
                        help='merge the network after loading it: the same results, faster')
    parser.add_argument('--tta', action='store_true',
                        help='test-time augmentation: merge the predictions of several sizes of each image and of '
                        "their mirror images, by the config's tta_model and tta_pipeline or tta_ratios")
    add_runner_arguments(parser)
    return parser, parser.parse_args()


def check_show_dir(cfg: Config, folder: str, force: bool) -> None:
    """Raises ValueError for a folder with files in it, and always for one of the images that are tested."""
    shown = Path(folder).resolve()
    for images in image_folders(cfg.test_dataloader.dataset) if cfg.get('test_dataloader') else ():
        if Path(images).resolve() in (shown, *shown.parents):
            raise ValueError(f'--show-dir {folder!r} lies in the folder of the images, {images!r}: pictures would '
                             'overwrite them. Name another folder')
    if not force and shown.is_dir() and any(shown.iterdir()):
        raise ValueError(f'--show-dir {folder!r} is not empty. --force draws into it all the same')


def draw_predictions(cfg: Config, folder: str) -> None:
    """Makes the config's visualization hook draw into a folder; the option's name depends on the library."""
    hook = cfg.default_hooks.visualization
    folder = os.path.abspath(folder)
    if type_name(hook.type) == 'DetVisualizationHook':
        hook.update(draw=True, test_out_dir=folder)
    elif type_name(hook.type) == 'VisualizationHook':
        hook.update(enable=True, out_dir=folder)
    else:
        hook.update(draw=True, interval=1)  # otherwise mmsegmentation 1.2 draws every 50th batch
        cfg.visualizer.save_dir = folder


def dump_predictions(cfg: Config, path: str) -> None:
    """Adds a metric that writes the predictions to a file."""
    kind = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    cfg.test_evaluator = [*evaluators, dict(type=kind, out_file_path=path)]


def drop_averaging(cfg: Config) -> None:
    """Removes EMAHook, which would put averaged weights, loaded already, into the layers of the unmerged network."""
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or () if type_name(hook.get('type')) != 'EMAHook']


class MergeHook(Hook):
    """Merges the network after its weights are loaded."""

    def before_test(self, runner: Runner) -> None:
        merge_model(runner.model.module if is_model_wrapper(runner.model) else runner.model)


def without_file_name(cfg: Config) -> Config:
    """The same config without the name of its file.

    A runner saves its config in the work folder under that name, which here would overwrite the config that the
    training saved; without a name the runner uses the time.
    """
    # In a pure-Python config, imported classes and functions are entries, too.
    plain = (dict, list, tuple, str, int, float, bool, type(None))
    return Config({key: cfg[key] for key in cfg if isinstance(cfg[key], plain)})


def prepare(parser: argparse.ArgumentParser, args: argparse.Namespace, starts_here: bool = True) -> Config:
    """The config of a command line, after all checks that need no model; tools/env/launch.py calls this, too.

    A machine where no process starts, such as Slurm's login node, needs no GPU.
    """
    if '://' not in args.checkpoint and not os.path.isfile(args.checkpoint):
        parser.error(f'checkpoint {args.checkpoint!r} does not exist')
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out!r}')
    cfg = load_runner_config(parser, args, ('test', ), starts_here)
    cfg.load_from = args.checkpoint
    cfg.resume = False  # it is True in the config that a resumed training saves in its work folder
    if not cfg.get('test_dataloader'):
        raise ConfigError(f'config {args.config!r} has no test_dataloader')
    # A test must not need other data than its own.
    for name in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'val_cfg', 'val_dataloader',
                 'val_evaluator'):
        cfg[name] = None
    if args.show_dir:
        if 'visualization' not in cfg.get('default_hooks', {}):
            raise ConfigError(f'--show-dir: {args.config} has no default_hooks.visualization')
        check_show_dir(cfg, args.show_dir, args.force)
        draw_predictions(cfg, args.show_dir)
    if args.out:
        refuse_overwrite(args.out, (args.config, args.checkpoint), args.force)
        dump_predictions(cfg, args.out)
    if not args.skip_preflight:
        check_data(parser, cfg, ('test', ))
    return cfg


def warn(sentence: str) -> None:
    print_log(sentence, logger='current', level=logging.WARNING)


@command
def main() -> None:
    parser, args = parse_args()
    cfg = prepare(parser, args)
    if args.show_dir and args.launcher != 'none':
        warn('--show-dir: the main process draws its share of the images only; one process draws all')
    if args.tta:
        for sentence in augment_test(cfg):
            warn(sentence)
    if args.deploy:
        drop_averaging(cfg)
    start = StartHook()
    with config_errors(args.config, start):
        runner = build_runner(without_file_name(cfg), least_fit=1, trust_checkpoint=args.trust_checkpoint)
        runner.register_hook(start)
        if args.deploy:
            runner.register_hook(MergeHook())
        metrics = runner.test()
    if is_main_process():
        width = max(map(len, metrics), default=0)
        for name, value in metrics.items():
            print(f'{name:{width}}  {value:.4f}' if isinstance(value, Real) else f'{name:{width}}  {value}')


if __name__ == '__main__':
    main()
    leave()
