# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Writes a classifier, detector or segmentor, or its backbone, as an ONNX file that onnxruntime runs without torch.

The input of a whole model is "images" (B, H, W, 3), RGB, bytes. A classifier gives "probabilities" (B, classes), a
detector "boxes" (B, N, 4), "scores" and "labels" (B, N), and "masks" (B, N, 28, 28) if it has a mask head, a segmentor
"class_map" (B, H, W). The metadata of the file has classes, colours, thresholds and how images are resized before.

With --backbone the input is normalized (B, C, H, W), and the file gives the feature maps "stage1" to "stage4", as the
neck gets them.

Batch, height and width are free unless --static is given. The file is run in onnxruntime against PyTorch at three sizes
before it is written.
"""
import argparse
import os
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from rich.console import Console
from torch import nn

from partialnet_mm.analysis.build import build_model
from partialnet_mm.checkpoint.atomic import refuse_overwrite, write_atomically
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.converters.publish import strip_checkpoint
from partialnet_mm.deploy.comparison import TOLERANCE, Comparison, compare
from partialnet_mm.deploy.metadata import as_texts, versions
from partialnet_mm.deploy.metadata import describe as describe_whole
from partialnet_mm.deploy.onnx_export import INPUT, differences, require_onnx, to_onnx, whole_to_onnx
from partialnet_mm.deploy.whole_model import min_size, refuse_search, whole_model
from partialnet_mm.engine.runners.command_line import add_config_arguments, load_config
from partialnet_mm.engine.runners.config_file import config_errors
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.models import PartialNet, merge_model


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
    parser.add_argument('--backbone', action='store_true', help='write the backbone alone')
    parser.add_argument('--static', action='store_true', help='one image of --shape at a time, nothing else')
    parser.add_argument('--no-check', action='store_true', help='write without running the file in onnxruntime')
    parser.add_argument('--force', action='store_true', help='overwrite the file if it exists')
    return parser, parser.parse_args()


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the command for what could not be done, before anything is built."""
    if args.checkpoint is not None and not os.path.isfile(args.checkpoint):
        parser.error(f'checkpoint {args.checkpoint!r} does not exist')
    if args.backbone and min(args.shape) < PartialNet.min_size:
        parser.error(f'--shape must be at least {PartialNet.min_size} {PartialNet.min_size}, the stride of the last '
                     f'map, got {args.shape[0]} {args.shape[1]}')
    if min(args.shape) < 1:
        parser.error(f'--shape must be two positive numbers, got {args.shape[0]} {args.shape[1]}')
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
        ValueError: If there is none, or more than one.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, PartialNet)}
    if len(found) != 1:
        raise ValueError(f'the model of the config ({type(model).__name__}) holds '
                         f'{"no PartialNet" if not found else "PartialNets " + ", ".join(map(repr, found))}; '
                         'needed is one')
    (backbone, ) = found.values()
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


def describe_backbone(cfg: Config, args: argparse.Namespace, backbone: PartialNet,
                      outputs: list[str]) -> dict[str, object]:
    """The metadata of a backbone's file, before its values become texts."""
    free = not args.static
    shape = ['batch', backbone.in_channels, 'height', 'width'] if free else [1, backbone.in_channels, *args.shape]
    return dict(preprocessing(cfg), input=INPUT, input_shape=shape, min_size=backbone.min_size, outputs=outputs,
                strides=[4 * 2**i for i in backbone.out_indices],
                channels=[backbone.channels[i] for i in backbone.out_indices], merged=bool(args.deploy),
                versions=versions())


def checked_shapes(args: argparse.Namespace, least: int, divisor: int = 1) -> list[tuple[int, int, int]]:
    """(B, H, W): the shape asked for; and, unless static, an odd larger one and a smaller one, in other batches.

    All are multiples of ``divisor``.
    """
    if divisor > 1:
        shapes = checked_shapes(args, least)
        return [(batch, *(-(-side // divisor) * divisor for side in sides)) for batch, *sides in shapes]
    height, width = (max(side, least) for side in args.shape)
    if args.static:
        return [(1, height, width)]
    return [(1, height, width), (2, height + 1, width + 33),
            (3, max(least, height // 2 + 1), max(least, width * 3 // 4 + 1))]


def export_backbone(cfg: Config, args: argparse.Namespace, model: nn.Module, log: Console) -> tuple:
    """The ONNX model of the backbone, its metadata and the comparisons with PyTorch, one after the other."""
    backbone = find_backbone(model).eval()
    outputs = [f'stage{i + 1}' for i in backbone.out_indices]
    with log.status('exporting'):
        exported = to_onnx(backbone, (1, backbone.in_channels, *args.shape), outputs, not args.static)

    def comparisons() -> Iterator[Comparison]:
        for batch, height, width in checked_shapes(args, PartialNet.min_size):
            shape = (batch, backbone.in_channels, height, width)
            difference, = differences(exported, backbone, [shape])
            yield Comparison(f'{" x ".join(map(str, shape))}: largest difference {difference:.1e} of the largest value',
                             difference < TOLERANCE)

    return exported, describe_backbone(cfg, args, backbone, outputs), comparisons()


def export_whole(cfg: Config, args: argparse.Namespace, model: nn.Module, meta: dict, log: Console) -> tuple:
    """The ONNX model of the whole model, its metadata and the comparisons with PyTorch, one after the other."""
    whole = whole_model(model)
    metadata = describe_whole(cfg, model, whole, meta)
    shapes = checked_shapes(args, min_size(whole), getattr(whole.network, 'divisor', 1))
    with log.status('exporting'):
        exported = whole_to_onnx(whole, shapes[0][1:] if args.static else None)
    return exported, metadata, compare(exported, whole, model, shapes)


@command
def main() -> None:
    parser, args = parse_args()
    check_args(parser, args)
    cfg = load_config(parser, args)
    log = Console(stderr=True)
    try:
        with config_errors(args.config):
            model = build_model(cfg).eval()
        refuse_search(model)
        if args.backbone:
            find_backbone(model)
        if args.checkpoint:
            meta = load(model, args.checkpoint)
        else:  # a SyncBN that has seen no batch is not merged
            meta, model = {}, revert_sync_batchnorm(model)
        if args.deploy and any(hasattr(module, 'switch_to_deploy') for module in model.modules()):
            merge_model(model)
        if args.backbone:
            exported, metadata, comparisons = export_backbone(cfg, args, model, log)
        else:
            exported, metadata, comparisons = export_whole(cfg, args, model, meta, log)
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f'nothing was written: {error}') from error
    metadata.update(config=os.path.basename(args.config), checkpoint=os.path.basename(args.checkpoint or ''),
                    form='merged' if args.deploy else 'trainable')
    from onnx.helper import set_model_props  # after require_onnx, which reports a missing package
    set_model_props(exported, as_texts(metadata))
    if not args.no_check:
        try:
            for comparison in comparisons:
                print(comparison.text)
                if not comparison.equal:
                    parser.exit(1, 'nothing was written: onnxruntime differs from PyTorch by more than rounding\n')
        except ValueError as error:
            raise ValueError(f'nothing was written: {error}') from error
    content = exported.SerializeToString()
    write_atomically(content, args.output)
    weights = f'of {args.checkpoint}' if args.checkpoint else 'random: no checkpoint was named'
    print(f'{args.output}: {len(content) / 2**20:.1f} MiB, {"merged" if args.deploy else "as in the config"}, '
          f'{INPUT} -> {", ".join(output.name for output in exported.graph.output)}; weights {weights}')


if __name__ == '__main__':
    main()
