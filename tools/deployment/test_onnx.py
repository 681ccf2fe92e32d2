# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Tests the ONNX file of a whole model in onnxruntime on the CPU: prints the metrics of the config's test data.

With --checkpoint it tests the model of the config in PyTorch, too, and prints both and their difference.
"""
import argparse
import os
from numbers import Real

import torch

from partialnet_mm.analysis.build import build_model
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.converters.publish import strip_checkpoint
from partialnet_mm.deploy.evaluation import OnnxPredictions, evaluate
from partialnet_mm.engine.runners.command_line import add_config_arguments, check_data, load_config
from partialnet_mm.engine.runners.config_file import ConfigError, config_errors
from partialnet_mm.engine.runners.user_errors import ToolParser, command


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='the ONNX file, as tools/deployment/export_onnx.py writes it without --backbone')
    add_config_arguments(parser)
    parser.add_argument('--checkpoint', help='test this checkpoint in PyTorch, too')
    parser.add_argument('--images', type=int, metavar='N', help='test the first N images only')
    parser.add_argument('--skip-preflight', action='store_true', help='do not check the data first')
    return parser, parser.parse_args()


@command
def main() -> None:
    parser, args = parse_args()
    for path in filter(None, (args.model, args.checkpoint)):
        if not os.path.isfile(path):
            parser.error(f'{path!r} does not exist')
    if args.images is not None and args.images < 1:
        parser.error(f'--images must be at least 1, got {args.images}')
    cfg = load_config(parser, args, ('test', ))
    if not (cfg.get('test_dataloader') and cfg.get('test_evaluator')):
        raise ConfigError(f'config {args.config!r} has no test_dataloader or no test_evaluator')
    if not args.skip_preflight:
        check_data(parser, cfg, ('test', ))
    predict = OnnxPredictions(args.model)
    model = None
    with config_errors(args.config):
        if args.checkpoint:
            model = build_model(cfg).eval()
            model.load_state_dict(strip_checkpoint(read_checkpoint(args.checkpoint))['state_dict'])
        found = evaluate(predict, cfg, args.images)
        with torch.no_grad():
            wanted = evaluate(model.test_step, cfg, args.images) if model else {}
    width = max(map(len, found), default=0)
    if wanted:
        print(f'{"":{width}}  onnxruntime  PyTorch  difference')
    for name, value in found.items():
        if not isinstance(value, Real):
            print(f'{name:{width}}  {value}')
        elif wanted:
            print(f'{name:{width}}  {value:11.4f}  {wanted[name]:7.4f}  {value - wanted[name]:+10.4f}')
        else:
            print(f'{name:{width}}  {value:.4f}')


if __name__ == '__main__':
    main()
