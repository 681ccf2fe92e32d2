# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Counts the parameters and multiply-adds of any classifier, detector or segmentor; needs no data set."""
import argparse
import os
from collections import Counter

import torch
from mmengine.config import Config, DictAction
from mmengine.structures import InstanceData
from torch import Tensor, nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.analysis.flops import multiply_adds_by_layer
from partialnet_mm.models import merge_model

PROPOSALS = 1000
COUNTED = ('Counted are multiply-adds of convolutions, matrix products and attention, in evaluation mode: not norms, '
           'activations, pooling, interpolation, RoIAlign, deformable sampling, NMS or other post-processing.')


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, epilog=COUNTED)
    parser.add_argument('config', help='config file of mmpretrain, mmdet or mmseg')
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'),
                        help='of the image as the network gets it, padding included (default: 224 224)')
    parser.add_argument('--deploy', action='store_true', help='count the merged form, as the paper does')
    parser.add_argument('--by-layer', action='store_true', help='also print each layer')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to the config, e.g. model.backbone.arch=l')
    return parser, parser.parse_args()


def forward_detector(model: nn.Module, image: Tensor) -> object:
    """Runs all of a detector but its post-processing; two stages on 1000 drawn proposals, whatever the weights are."""
    from mmdet.structures import DetDataSample
    height, width = image.shape[2:]
    size = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width),
                batch_input_shape=(height, width), scale_factor=(1., 1.))
    samples = [DetDataSample(metainfo=size)]
    if not getattr(model, 'with_rpn', False):
        return model(image, samples, mode='tensor')
    maps = model.extract_feat(image)
    model.rpn_head(maps)
    corners = torch.rand(PROPOSALS, 2, 2, device=image.device).sort(dim=1).values
    boxes = (corners * image.new_tensor([width, height])).flatten(1)
    return model.roi_head(maps, [InstanceData(bboxes=boxes)], samples)


def part_of(name: str) -> str:
    """The part of a model that a layer belongs to: 'backbone', 'roi_head.bbox_head', ..."""
    words = name.split('.')
    return '.'.join(words[:2 if words[0] == 'roi_head' else 1])


def main() -> None:
    parser, args = parse_args()
    if not os.path.isfile(args.config):
        parser.error(f'config {args.config!r} does not exist')
    height, width = args.shape
    if min(height, width) < 1:
        parser.error(f'--shape must be two positive numbers, got {height} {width}')
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    try:
        model = build_model(cfg).eval()
        if args.deploy:
            merge_model(model)
    except (TypeError, ValueError) as error:
        parser.exit(1, f'{args.config}: {error}\n')
    image = torch.zeros(1, cfg.model.get('backbone', {}).get('in_channels', 3), height, width)
    if cfg.default_scope == 'mmdet':
        layers = multiply_adds_by_layer(model, lambda: forward_detector(model, image))
    else:
        layers = multiply_adds_by_layer(model, lambda: model(image, mode='tensor'))

    params, counts = Counter(), Counter()
    sizes = {name: sum(p.numel() for p in module.parameters(recurse=False)) for name, module in model.named_modules()}
    for name, size in sizes.items():
        params[part_of(name)] += size
        counts[part_of(name)] += layers.get(name, 0)
    print(f'{type(model).__name__} of {args.config}, one image of {height} x {width}'
          f'{", merged" if args.deploy else ""}\n')
    if args.by_layer:
        print('| layer | type | Params (M) | multiply-adds (G) |\n|---|---|---|---|')
        for name, module in model.named_modules():
            if sizes[name] or name in layers:
                print(f'| {name} | {type(module).__name__} | {sizes[name] / 1e6:.4f} | '
                      f'{layers.get(name, 0) / 1e9:.4f} |')
        print()
    print('| part | Params (M) | multiply-adds (G) |\n|---|---|---|')
    for part in params:
        if params[part] or counts[part]:
            print(f'| {part or "(none)"} | {params[part] / 1e6:.2f} | {counts[part] / 1e9:.3f} |')
    print(f'| all | {sum(params.values()) / 1e6:.2f} | {sum(counts.values()) / 1e9:.3f} |\n\n{COUNTED}')
    if getattr(model, 'with_rpn', False):
        print(f'{PROPOSALS} proposals go through the second stage; the mask head of mmdet\'s StandardRoIHead gets the '
              'first 100, as the detections of an image.')


if __name__ == '__main__':
    main()
