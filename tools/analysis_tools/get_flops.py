# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Counts the parameters and multiply-adds of any classifier, detector or segmentor; needs no data set."""
import argparse

import torch
from torch import nn

from partialnet_mm.analysis.build import PROPOSALS, Detector, build_model
from partialnet_mm.analysis.commands import positive
from partialnet_mm.analysis.flops import multiply_adds_by_layer
from partialnet_mm.analysis.measure import markdown_table
from partialnet_mm.engine.runners.command_line import add_config_arguments, load_config
from partialnet_mm.engine.runners.config_file import config_errors
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models import merge_model

COUNTED = ('Counted are multiply-adds of convolutions, matrix products and attention, in evaluation mode: not norms, '
           'activations, pooling, interpolation, RoIAlign, deformable sampling, NMS or other post-processing.')


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = ToolParser(description=__doc__, epilog=COUNTED)
    add_config_arguments(parser)
    parser.add_argument('--shape', type=positive, nargs=2, default=(224, 224), metavar=('H', 'W'),
                        help='of the image at the input of the network, with padding (default: 224 224)')
    parser.add_argument('--deploy', action='store_true', help='count the merged form, as the paper does')
    parser.add_argument('--by-layer', action='store_true', help='also print each layer')
    return parser, parser.parse_args()


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """The rows of the table: the model's children, and those of its second stage."""
    parts = {}
    for name, child in model.named_children():
        if name == 'roi_head':
            parts |= {f'{name}.{inner}': module for inner, module in child.named_children()}
        else:
            parts[name] = child
    return parts


@command
def main() -> None:
    parser, args = parse_args()
    height, width = args.shape
    cfg = load_config(parser, args)
    with config_errors(args.config):
        model = build_model(cfg).eval()
        if args.deploy:
            merge_model(model)
    image = torch.zeros(1, cfg.model.get('backbone', {}).get('in_channels', 3), height, width)
    if cfg.default_scope == 'mmdet':
        counts = multiply_adds_by_layer(model, lambda: Detector(model)(image))
    else:
        counts = multiply_adds_by_layer(model, lambda: model(image, mode='tensor'))

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    print(f'{type(model).__name__} of {args.config}, one image of {height} x {width}'
          f'{", merged" if args.deploy else ""}\n')
    if args.by_layer:
        rows = [[name, type(module).__name__, f'{size(module) / 1e6:.4f}', f'{counts.get(name, 0) / 1e9:.4f}']
                for name, module in model.named_modules() if name and (size(module) or name in counts)]
        print(markdown_table(['layer, with all inside', 'type', 'Params (M)', 'multiply-adds (G)'], rows), end='\n\n')
    found = {name: (size(module), counts.get(name, 0)) for name, module in modules_of(model).items()}
    total = size(model), counts['']
    found['(none)'] = tuple(every - sum(column) for every, column in zip(total, zip(*found.values())))
    rows = [[name, f'{params / 1e6:.2f}', f'{count / 1e9:.3f}'] for name, (params, count) in
            [*found.items(), ('all', total)] if params or count]
    print(markdown_table(['module', 'Params (M)', 'multiply-adds (G)'], rows))
    print(f'\n{COUNTED}')
    if getattr(model, 'with_rpn', False):
        print(f'{PROPOSALS} proposals go through the second stage; the mask head of mmdet\'s StandardRoIHead gets the '
              'first 100, as the detections of an image.')


if __name__ == '__main__':
    main()
