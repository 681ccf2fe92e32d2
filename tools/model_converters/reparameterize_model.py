# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Converts a checkpoint of a classifier, detector or segmentor into the merged form, for inference.

The merged weights are loaded into the model that the config builds with deploy=True, and its feature maps are compared
with those of the given one, before anything is written. The file holds weights, classes and config: no optimizer.
"""
import argparse

from mmengine.config import Config
from torch import nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.checkpoint import check_ending, read_checkpoint, write_checkpoint
from partialnet_mm.checkpoint.atomic import refuse_overwrite
from partialnet_mm.checkpoint.pretrained import content_for
from partialnet_mm.converters.reparameterize import reparameterize
from partialnet_mm.engine.runners.command_line import add_config_arguments, load_config
from partialnet_mm.engine.runners.config_file import config_errors
from partialnet_mm.engine.runners.user_errors import ToolParser, command

TOLERANCE = 1e-5


@command
def main() -> None:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='trained checkpoint; one of a training with EMA gives its averaged weights')
    parser.add_argument('out', help='merged checkpoint to write: FILE.safetensors, or FILE.pth')
    parser.add_argument('--force', action='store_true', help='overwrite the file if it exists')
    args = parser.parse_args()
    try:
        check_ending(args.out)
        refuse_overwrite(args.out, (args.config, args.checkpoint), args.force)
    except ValueError as error:
        parser.error(str(error))
    cfg = load_config(parser, args)

    def build(cfg: Config) -> nn.Module:
        with config_errors(args.config):
            return build_model(cfg)

    try:
        content = content_for(cfg.model, read_checkpoint(args.checkpoint), args.checkpoint)
        merged, modules, difference = reparameterize(cfg, content, build)
        if not difference < TOLERANCE:
            raise ValueError(f'the feature maps of the merged model differ by {difference:.1e} of their largest value, '
                             f'more than {TOLERANCE:.0e}')
        write_checkpoint(merged, args.out)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f'{args.checkpoint!r}: nothing was written: {error}') from error
    if 'ema_state_dict' in content:
        print("the training averaged its weights (EMA): the averaged ones, which are the checkpoint's state_dict, were "
              'merged')
    options = ' '.join(f'model.{module}.deploy=True' for module in modules)
    print(f'{args.out}: merged {", ".join(modules)}; largest difference of the feature maps of random images '
          f'{difference:.1e} of their largest value, as allowed up to {TOLERANCE:.0e}\n'
          f'load it with: {args.config} --cfg-options {options}')


if __name__ == '__main__':
    main()
