# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Writes a classifier, or the backbone of a classifier, detector or segmentor, as an ONNX file.

A classifier of mmpretrain gives "logits" (B, classes), before softmax. A backbone gives the maps of its stages,
"stage1" to "stage4", as the neck gets them. The input is "images" (B, C, H, W), normalized and in the order of channels
that the file's metadata names; batch, height and width are free (H and W from 32 up) unless --static is given. The file
is run in onnxruntime against PyTorch at three sizes before it is written.
"""
import argparse
import json
import os

import torch
from mmengine.config import Config
from rich.console import Console
from torch import Tensor, nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.checkpoint.atomic import refuse_overwrite, write_atomically
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.converters.publish import strip_checkpoint
from partialnet_mm.deploy.onnx_export import INPUT, differences, require_onnx, to_onnx
from partialnet_mm.engine.runners.command_line import add_config_arguments, load_config
from partialnet_mm.engine.runners.config_file import config_errors
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models import PartialNet, SplitGates, merge_model
from partialnet_mm.version import __version__

TOLERANCE = 1e-4


class Logits(nn.Module):
    """A classifier of mmpretrain from images to logits."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images, mode='tensor')


def parse_args() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', nargs='?', help='its checkpoint (default: random weights)')
    parser.add_argument('--output', required=True, metavar='FILE', help='the ONNX file; its folder must exist')
    parser.add_argument('--shape', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'),
                        help='of the images: with --static the only one, else the first that is checked '
                        '(default: 224 224)')
    # argparse has this as an action since Python 3.9.
    parser.add_argument('--deploy', dest='deploy', action='store_true', default=True,
                        help='write the merged form (the default)')
    parser.add_argument('--no-deploy', dest='deploy', action='store_false', help='write the form that the config has')
    parser.add_argument('--backbone', action='store_true',
                        help="write a classifier's backbone; of detectors and segmentors that is all that is written")
    parser.add_argument('--static', action='store_true', help='one image of --shape at a time, nothing else')
    parser.add_argument('--no-check', action='store_true', help='write without running the file in onnxruntime')
    parser.add_argument('--force', action='store_true', help='overwrite the file if it exists')
    return parser, parser.parse_args()


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the command for what could not be done, before anything is built."""
    if args.checkpoint is not None and not os.path.isfile(args.checkpoint):
        parser.error(f'checkpoint {args.checkpoint!r} does not exist')
    if min(args.shape) < PartialNet.min_size:
        parser.error(f'--shape must be at least {PartialNet.min_size} {PartialNet.min_size}, the stride of the last '
                     f'map, got {args.shape[0]} {args.shape[1]}')
    folder = os.path.dirname(os.path.abspath(args.output))
    if not os.path.isdir(folder):
        parser.error(f'--output: the folder {folder!r} does not exist')
    try:
        refuse_overwrite(args.output, [path for path in (args.config, args.checkpoint) if path], args.force)
    except ValueError as error:
        parser.error(str(error))
    try:
        require_onnx()
    except ImportError as error:
        parser.error(str(error))


def find_backbone(model: nn.Module) -> PartialNet:
    """The one PartialNet of a model.

    Raises:
        ValueError: If there is none, or more than one, or it still searches for its split ratios.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, PartialNet)}
    if len(found) != 1:
        raise ValueError(f'the model of the config ({type(model).__name__}) holds '
                         f'{"no PartialNet" if not found else "PartialNets " + ", ".join(map(repr, found))}; '
                         'needed is one')
    (backbone, ) = found.values()
    if any(isinstance(module, SplitGates) for module in backbone.modules()):
        raise ValueError('the PartialNet learns its split ratios (token_mixers="dpconv" or "dpconv_ch"), and its '
                         'layers have no sizes yet: tools/model_converters/dpconv_to_fixed.py makes the network to '
                         'export')
    return backbone


def load(model: nn.Module, path: str) -> dict:
    """Loads a checkpoint that must fit without rest; returns what it says of itself.

    Raises:
        ValueError: If it cannot be read, or does not fit.
    """
    stripped = strip_checkpoint(read_checkpoint(path))
    state = {name[len('module.'):] if name.startswith('module.') else name: value
             for name, value in stripped['state_dict'].items()}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f'checkpoint {path!r} does not fit the config: it belongs to another network or other '
                         'classes, or is merged already (then: --cfg-options model.backbone.deploy=True). '
                         f'{str(error)[:1500]}') from error
    return stripped['meta']


def preprocessing(cfg: Config) -> dict[str, object]:
    """What the config's data_preprocessor does to an image: order of channels, mean and std."""
    given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    # OpenMMLab loads images as BGR.
    order = 'RGB' if given.get('to_rgb') or given.get('bgr_to_rgb') else 'BGR'
    return dict(channel_order=order, mean=given.get('mean') or [0.], std=given.get('std') or [1.])


def describe(cfg: Config, args: argparse.Namespace, backbone: PartialNet, meta: dict,
             outputs: list[str]) -> dict[str, str]:
    """The metadata of the file: texts, lists as JSON."""
    free = not args.static
    shape = ['batch', backbone.in_channels, 'height', 'width'] if free else [1, backbone.in_channels, *args.shape]
    metadata = dict(preprocessing(cfg), input=INPUT, input_shape=shape, min_size=backbone.min_size, outputs=outputs,
                    config=os.path.basename(args.config), checkpoint=os.path.basename(args.checkpoint or ''),
                    merged=bool(args.deploy), partialnet_mm=__version__, torch=torch.__version__)
    if outputs != ['logits']:
        metadata['strides'] = [4 * 2**i for i in backbone.out_indices]
        metadata['channels'] = [backbone.channels[i] for i in backbone.out_indices]
    classes = meta.get('dataset_meta', {}).get('classes')
    if classes is not None and outputs == ['logits']:
        metadata['classes'] = list(classes)
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}


def checked_shapes(args: argparse.Namespace, channels: int) -> list[tuple[int, int, int, int]]:
    """The shape asked for; and, unless static, an odd larger one and a smaller one, in other batches."""
    height, width = args.shape
    if args.static:
        return [(1, channels, height, width)]
    least = PartialNet.min_size
    return [(1, channels, height, width), (2, channels, height + 1, width + 33),
            (3, channels, max(least, height // 2 + 1), max(least, width * 3 // 4 + 1))]


@command
def main() -> None:
    parser, args = parse_args()
    check_args(parser, args)
    cfg = load_config(parser, args)
    log = Console(stderr=True)
    try:
        with config_errors(args.config):
            model = build_model(cfg).eval()
        backbone = find_backbone(model)
        meta = load(model, args.checkpoint) if args.checkpoint else {}
        if args.deploy:
            merge_model(model)
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f'nothing was written: {error}') from error
    whole = cfg.default_scope == 'mmpretrain' and getattr(model, 'with_head', False) and not args.backbone
    network = (Logits(model) if whole else backbone).eval()
    outputs = ['logits'] if whole else [f'stage{i + 1}' for i in backbone.out_indices]
    with log.status('exporting'):
        exported = to_onnx(network, (1, backbone.in_channels, *args.shape), outputs, not args.static)
    from onnx.helper import set_model_props  # after require_onnx, which reports a missing package
    set_model_props(exported, describe(cfg, args, backbone, meta, outputs))
    if not args.no_check:
        shapes = checked_shapes(args, backbone.in_channels)
        with log.status('running in onnxruntime'):
            try:
                found = differences(exported, network, shapes)
            except ValueError as error:
                raise ValueError(f'nothing was written: {error}') from error
        for shape, difference in zip(shapes, found):
            print(f'{" x ".join(map(str, shape))}: largest difference {difference:.1e} of the largest value')
        if not all(difference < TOLERANCE for difference in found):
            parser.exit(1, f'nothing was written: onnxruntime differs from PyTorch by more than {TOLERANCE:.0e}\n')
    content = exported.SerializeToString()
    write_atomically(content, args.output)
    weights = f'of {args.checkpoint}' if args.checkpoint else 'random: no checkpoint was named'
    print(f'{args.output}: {len(content) / 2**20:.1f} MiB, {"merged" if args.deploy else "as in the config"}, '
          f'{INPUT} -> {", ".join(outputs)}; weights {weights}')


if __name__ == '__main__':
    main()
