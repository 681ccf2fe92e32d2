# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Times the whole call, from an image file to the result on its picture: PyTorch and the predictor without torch.

PyTorch runs the config's own test pipeline and model, in the form of the config and merged. All read the same files, in
alternating rounds, on the CPU. A round is one pass over all images.
"""
import argparse
import copy
import os
from collections.abc import Callable, Sequence

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import TRANSFORMS
from torch import nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.commands import positive
from partialnet_mm.analysis.measure import describe_machine, markdown_table, ratio, spread, time_in_rounds
from partialnet_mm.checkpoint import read_checkpoint
from partialnet_mm.config_types import type_name
from partialnet_mm.converters.publish import strip_checkpoint
from partialnet_mm.deploy import Predictor
from partialnet_mm.engine.runners.command_line import add_config_arguments, load_config
from partialnet_mm.engine.runners.config_file import ConfigError, config_errors
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models import merge_model
from partialnet_mm.preflight import leaf_datasets


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('model', help='the ONNX file that tools/deployment/export_onnx.py wrote from both')
    parser.add_argument('images', nargs='+', help='image files')
    parser.add_argument('--threads', type=positive, default=1, help='threads on the CPU (default: 1)')
    parser.add_argument('--rounds', type=positive, default=10, help='timed rounds (default: 10)')
    args = parser.parse_args()
    for path in (args.checkpoint, args.model, *args.images):
        if not os.path.isfile(path):
            parser.error(f'file {path!r} does not exist')
    return parser, args


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """The model of a config with the weights of a checkpoint, in evaluation mode.

    Raises:
        ValueError: If they do not fit.
    """
    model = build_model(cfg).eval()
    try:
        model.load_state_dict(strip_checkpoint(read_checkpoint(checkpoint))['state_dict'])
    except RuntimeError as error:
        raise ValueError(f'checkpoint {checkpoint!r} does not fit the config: {str(error)[:600]}') from error
    return model


def build_pipeline(cfg: Config) -> Compose:
    """The test pipeline of a config, without annotations."""
    test_set = next(leaf_datasets(cfg.test_dataloader.dataset), {}) if cfg.get('test_dataloader') else {}
    if not test_set.get('pipeline'):
        raise ConfigError('the config has no pipeline in test_dataloader.dataset, which prepares images')
    return Compose([TRANSFORMS.build(step) for step in test_set['pipeline']
                    if 'Annotations' not in type_name(step.get('type'))])


def run_in_torch(pipeline: Compose, model: nn.Module, images: Sequence[str]) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        for path in images:
            model.test_step(pseudo_collate([pipeline(dict(img_path=path, img_id=0))]))
    return run


def run_predictor(predictor: Predictor, images: Sequence[str]) -> Callable[[], None]:
    def run() -> None:
        for path in images:
            # PyTorch has pasted the masks by then, too.
            predictor(path).masks  # noqa: B018
    return run


@command
def main() -> None:
    parser, args = parse_args()
    cfg = load_config(parser, args)
    torch.set_num_threads(args.threads)
    with config_errors(args.config):
        trainable = load_model(cfg, args.checkpoint)
        pipeline = build_pipeline(cfg)
    merged = copy.deepcopy(trainable)
    merge_model(merged)
    times = time_in_rounds({
        'PyTorch': run_in_torch(pipeline, trainable, args.images),
        'PyTorch, merged': run_in_torch(pipeline, merged, args.images),
        'predictor': run_predictor(Predictor(args.model, args.threads), args.images)}, args.rounds)
    print(f'{describe_machine("cpu")}, {len(args.images)} images, {args.rounds} rounds; median and quartiles\n')
    print(markdown_table(('from file to result', 'ms per image', 'of PyTorch'), [
        (name, spread([1000 * second / len(args.images) for second in seconds]).text(0),
         ratio(times, name, 'PyTorch').text()) for name, seconds in times.items()]))


if __name__ == '__main__':
    main()
