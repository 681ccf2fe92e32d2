# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Tests a checkpoint: metrics, predictions to a file, pictures of them."""
import argparse
import logging
import os
from numbers import Real

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from partialnet_mm.engine.runners.command_line import add_common_arguments, build_runner, check_data, leave, load_config
from partialnet_mm.models import merge_model


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file; with --trust-checkpoint also an address')
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions to this file')
    parser.add_argument('--show-dir', metavar='DIR', help='draw the predictions into this folder')
    parser.add_argument('--deploy', action='store_true',
                        help='merge the network after loading it: the same results, faster')
    add_common_arguments(parser)
    return parser, parser.parse_args()


def draw_predictions(cfg: Config, folder: str) -> None:
    """Lets the config's visualization hook draw into a folder; each library names its options otherwise."""
    hook = cfg.default_hooks.visualization
    folder = os.path.abspath(folder)
    if hook.type == 'DetVisualizationHook':
        hook.update(draw=True, test_out_dir=folder)
    elif hook.type == 'VisualizationHook':
        hook.update(enable=True, out_dir=folder)
    else:
        hook.update(draw=True, interval=1)  # mmsegmentation 1.2 draws each 50th batch else
        cfg.visualizer.save_dir = folder


def dump_predictions(cfg: Config, path: str) -> None:
    """Adds a metric that writes the predictions to a file."""
    kind = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    cfg.test_evaluator = [*evaluators, dict(type=kind, out_file_path=path)]


class MergeHook(Hook):
    """Merges the network when its weights have been loaded."""

    def before_test(self, runner: Runner) -> None:
        merge_model(runner.model.module if is_model_wrapper(runner.model) else runner.model)


def main() -> None:
    parser, args = parse_args()
    cfg = load_config(parser, args)
    if '://' not in args.checkpoint and not os.path.isfile(args.checkpoint):
        parser.error(f'checkpoint {args.checkpoint!r} does not exist')
    cfg.load_from = args.checkpoint
    cfg.resume = False  # the config that a resumed training leaves in its work folder says True
    # A test must not ask for other data than its own.
    for name in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'val_cfg', 'val_dataloader',
                 'val_evaluator'):
        cfg[name] = None
    if args.show_dir:
        if 'visualization' not in cfg.get('default_hooks', {}):
            parser.error(f'--show-dir: {args.config} has no default_hooks.visualization')
        draw_predictions(cfg, args.show_dir)
        if args.launcher != 'none':
            print_log('--show-dir: the main process draws its share of the images only; one process draws all',
                      logger='current', level=logging.WARNING)
    if args.out:
        if not args.out.endswith(('.pkl', '.pickle')):
            parser.error(f'--out must end in .pkl or .pickle, got {args.out!r}')
        dump_predictions(cfg, args.out)
    if not args.skip_preflight:
        check_data(parser, cfg, ('test', ))
    if args.deploy:
        # It would put averaged weights, which a test has loaded already, into the layers of the unmerged network.
        cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or () if hook.type != 'EMAHook']
    runner = build_runner(cfg, least_fit=1, trust_checkpoint=args.trust_checkpoint)
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
