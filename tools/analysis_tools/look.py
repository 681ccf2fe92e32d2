# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Looks into trained classifiers.

grad_cam         heat maps of Grad-CAM over photographs, one column per network
feature_maps     the convolved and attended channels of partial attention, and its gates, for one image
receptive_field  the effective receptive field (Luo et al., 2016), printed and drawn
"""
import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from partialnet_mm.analysis.commands import any_device, picture, positive
from partialnet_mm.analysis.look import (
    METHODS,
    MapLayer,
    SplitMaps,
    cam_method,
    find_map_layer,
    heat_maps,
    largest_pixels,
    receptive_field,
    split_maps,
    splitting_layers,
    stage_layers,
)
from partialnet_mm.analysis.measure import markdown_table, progress
from partialnet_mm.analysis.trained_classifier import find_class, load_classifier, prepare, seen_box
from partialnet_mm.engine.runners.command_line import KeyValues
from partialnet_mm.engine.runners.config_file import config_errors, read_config
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.preflight import check_image
from partialnet_mm.preflight.image_folder import EXTENSIONS
from partialnet_mm.preflight.images import sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mmpretrain.apis import ImageClassificationInferencer

#: Most images in one picture.
MOST = 16
#: Longer side of a photograph in the picture, in pixels.
SIDE = 200
#: How many letters of a file's name, the last ones, are printed above its photograph.
LETTERS = 30
#: Fractions of the gradient.
FRACTIONS = (0.5, 0.9)
#: The picture shows values below this fraction of the largest pixel in one color.
FLOOR = 1e-4


class Column(NamedTuple):
    """One network at one layer: a heading, and for each image a title and a photograph in RGB."""

    heading: str
    titles: list[str]
    pictures: list[np.ndarray]


def find_images(given: Sequence[Path], most: int | None = None) -> list[str]:
    """Images of files and folders, at most some, evenly spread; all of these decode.

    Raises:
        ValueError: If there are none, or one cannot be read.
    """
    paths: list[Path] = []
    for path in given:
        inside = sorted(p for p in path.rglob('*') if p.suffix.lower() in EXTENSIONS) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f'no image in folder {str(path)!r}: looked for files that end in {", ".join(EXTENSIONS)}')
        paths += inside
    chosen = [str(path) for path in sample(paths, most)]
    findings = [str(finding) for path in chosen for finding in check_image(path)]
    if findings:
        raise ValueError('images that cannot be read:\n' + '\n'.join(findings))
    return chosen


def load(config: str, checkpoint: str, args: argparse.Namespace) -> 'ImageClassificationInferencer':
    """A network; raises a ValueError as load_classifier, and for what is wrong in the config."""
    cfg = read_config(config, args.cfg_options)
    with config_errors(config):
        return load_classifier(cfg, checkpoint, args.device)


def load_networks(args: argparse.Namespace) -> 'dict[str, ImageClassificationInferencer]':
    """The networks by name.

    Raises:
        ValueError: If there are more or fewer names than networks, or two have one name; as load_classifier.
    """
    pairs = [(args.config, args.checkpoint), *args.model]
    names = args.names or [Path(config).stem for config, _ in pairs]
    if len(names) != len(pairs) or len(set(names)) < len(names):
        raise ValueError(f'--names must be {len(pairs)} different names, one for each network, got {names}')
    return {name: load(config, checkpoint, args) for name, (config, checkpoint) in zip(names, pairs)}


def chosen_layers(model: nn.Module, inputs: Tensor, args: argparse.Namespace) -> list[MapLayer]:
    """The layers of --layer, of --stages, or the one that ends the last stage."""
    if args.layer:
        return [find_map_layer(model, inputs, name) for name in args.layer]
    return stage_layers(model, inputs)[0 if args.stages else -1:]


def enlarge(photograph: np.ndarray) -> np.ndarray:
    """A photograph whose longer side is SIDE pixels."""
    factor = SIDE / max(photograph.shape[:2])
    size = tuple(max(1, round(factor * length)) for length in photograph.shape[1::-1])
    return cv2.resize(photograph, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def draw_over(photograph: np.ndarray, heat: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The heat map over the rectangle of the photograph that the network has seen; the rest is unchanged."""
    from pytorch_grad_cam.utils.image import show_cam_on_image
    result = enlarge(photograph)
    factor = np.array(result.shape[1::-1] * 2) / (photograph.shape[1::-1] * 2)
    left, top, right, bottom = np.round(np.array(box) * factor).astype(int)
    heat = np.clip(cv2.resize(heat, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR), 0, 1)
    seen = result[top:bottom, left:right].astype(np.float32) / 255
    result[top:bottom, left:right] = show_cam_on_image(seen, heat, use_rgb=True)
    return result


def heat_columns(name: str, classifier: 'ImageClassificationInferencer', paths: Sequence[str],
                 photographs: list[np.ndarray], args: argparse.Namespace) -> Iterator[Column]:
    """The columns of one network."""
    inputs = prepare(classifier, paths)
    with torch.no_grad():
        samples = classifier.model(inputs, mode='predict')
    scores = [sample.pred_score for sample in samples]
    names = classifier.classes or [f'class {i}' for i in range(len(scores[0]))]
    best = labels = [int(score.argmax()) for score in scores]
    titles = [f'{names[label]} {score[label]:.2f}' for label, score in zip(best, scores)]
    if args.target is not None:
        label = find_class(classifier.classes, len(scores[0]), args.target)
        labels = [label] * len(best)
        titles = [title if own == label else f'{title} ({names[label]} {score[label]:.2f})'
                  for title, own, score in zip(titles, best, scores)]
    boxes = [seen_box(classifier, *photograph.shape[:2]) for photograph in photographs]
    for layer in chosen_layers(classifier.model, inputs, args):
        heats = heat_maps(classifier.model, layer.name, inputs, labels, args.method)
        marked = [title if heat.max() > 0 else f'{title}, empty' for title, heat in zip(titles, heats)]
        yield Column(f'{name}\n{layer.label}', marked, [draw_over(*each) for each in zip(photographs, heats, boxes)])


def grad_cam(args: argparse.Namespace) -> None:
    """Draws which pixels speak for a class, one column per network and layer.

    Images are in the first column. Above each heat map stand the class that the network predicts and its score. The
    heat map is of that class, or of --class, with a scale of its own; "empty" is one where no pixel speaks for it.
    """
    cam_method(args.method)
    paths = find_images(args.images)
    if len(paths) > MOST:
        raise ValueError(f'{len(paths)} images are more than the {MOST} of a picture')
    networks = load_networks(args)
    photographs = [mmcv.imread(path, channel_order='rgb') for path in paths]
    titles = ['/'.join(Path(path).parts[-2:])[-LETTERS:] for path in paths]
    columns = [Column('image', titles, [enlarge(photograph) for photograph in photographs])]
    for name, classifier in networks.items():
        columns += heat_columns(name, classifier, paths, photographs, args)
    rows = len(paths)
    figure = Figure(figsize=(2.2 * len(columns), 2.3 * rows + 0.5), layout='constrained')
    for cells, column in zip(figure.subplots(rows, len(columns), squeeze=False).T, columns):
        for i, (cell, title, photograph) in enumerate(zip(cells, column.titles, column.pictures)):
            show(cell, photograph, f'{column.heading}\n\n{title}' if i == 0 else title, fontsize=9)
    figure.savefig(args.output, dpi=75)
    print(f'{rows} images and {len(networks)} networks in {args.output}')


def show(cell: 'Axes', values: Tensor | np.ndarray | None, title: str = '', fontsize: int = 8,
         **options: object) -> object:
    """Draws a feature map (H, W) or a photograph (H, W, 3), or nothing."""
    cell.set_axis_off()
    if values is None:
        return None
    cell.set_title(title, fontsize=fontsize)
    return cell.imshow(values.cpu().numpy() if isinstance(values, Tensor) else values, **options)


def last_of_each_size(model: nn.Module, image: Tensor) -> dict[str, SplitMaps]:
    """The last layer that returns feature maps of a size, for every size."""
    names = splitting_layers(model)
    if not names:
        raise ValueError('no layer of this network splits its channels into convolved and attended ones; the commands '
                         'grad_cam and receptive_field look into any classifier')
    found = split_maps(model, names, image)
    last = {maps.convolved_out.shape[1:]: name for name, maps in found.items()}
    return {name: found[name] for name in last.values()}


def show_channels(cells: np.ndarray, before: Tensor, after: Tensor, gate: Tensor | None, first: int) -> None:
    """Draws some channels in (2, n) cells, inputs above outputs; ``first`` is the index of the first channel."""
    order = after.flatten(1).std(dim=1).argsort(descending=True, stable=True)
    chosen = order[:cells.shape[1]].sort().values.tolist()
    for column in cells.T[len(chosen):].flat:
        show(column, None)
    for (above, below), channel in zip(cells.T, chosen):
        show(above, before[channel], str(first + channel), cmap='gray')
        show(below, after[channel], '' if gate is None else f'gate {gate[channel]:.2f}', cmap='gray')


def feature_maps(args: argparse.Namespace) -> None:
    """Draws what partial attention makes of an image: its convolved and attended channels, and its gates.

    Per layer: some channels at the input above the output; the values of all channel gates (PAT_ch); and the spatial
    gate of the PAT_sp that follows in the same block. The channels are those whose output deviates most over the
    pixels. Each feature map has a scale of its own.
    """
    if len(args.images) > 1 or args.images[0].is_dir():
        raise ValueError(f'one image file is drawn, got {" ".join(map(str, args.images))}')
    image, = find_images(args.images)
    classifier = load(args.config, args.checkpoint, args)
    inputs, model = prepare(classifier, [image]), classifier.model
    found = split_maps(model, args.layer, inputs) if args.layer else last_of_each_size(model, inputs)
    rows = []
    for name, maps in found.items():
        cells = [cell for gate in (maps.gate, maps.spatial_gate) for cell in (
            ['-'] * 3 if gate is None else [f'{value:.2f}' for value in (gate.min(), gate.mean(), gate.max())])]
        rows.append([name.replace('backbone.', '', 1), len(maps.convolved_out), len(maps.attended_out), *cells])
    print(markdown_table(['layer', 'channels convolved', 'attended', 'channel gates: lowest', 'mean', 'highest',
                          'PAT_sp gate: lowest', 'mean', 'highest'], rows))
    photograph, channels = mmcv.imread(image, channel_order='rgb'), args.channels
    figure = Figure(figsize=(1.2 * (2 * channels + 3), 3 * len(found)), layout='constrained')
    for panel, (name, maps) in zip(figure.subfigures(len(found), squeeze=False)[:, 0], found.items()):
        height, width = maps.convolved_out.shape[1:]
        panel.suptitle(f'{name.replace("backbone.", "", 1)}, {height} x {width}: {len(maps.convolved_out)} channels '
                       f'convolved (left), {len(maps.attended_out)} attended (middle); input above output', fontsize=10)
        grid = panel.add_gridspec(2, 2 * channels + 2, width_ratios=[1] * 2 * channels + [2, 1])
        cells = np.array([[panel.add_subplot(grid[row, column]) for column in range(2 * channels)] for row in range(2)])
        show_channels(cells[:, :channels], maps.convolved_in, maps.convolved_out, None, 0)
        show_channels(cells[:, channels:], maps.attended_in, maps.attended_out, maps.gate, maps.first_attended)
        gates = panel.add_subplot(grid[:, -2])
        gates.set_title('no channel gates' if maps.gate is None else 'channel gates, sorted', fontsize=8)
        if maps.gate is None:
            gates.set_axis_off()
        else:
            gates.bar(range(len(maps.gate)), sorted(maps.gate.tolist(), reverse=True), width=1)
            gates.set_ylim(0, 1)
            gates.tick_params(labelsize=7)
        show(panel.add_subplot(grid[0, -1]), maps.spatial_gate, 'PAT_sp gate', vmin=0, vmax=1, cmap='viridis')
        show(panel.add_subplot(grid[1, -1]), photograph)
    figure.savefig(args.output, dpi=100)


def fields_of(classifier: 'ImageClassificationInferencer', name: str, paths: list[str],
              args: argparse.Namespace) -> dict[str, Tensor]:
    """The receptive field of each layer, (H, W)."""
    layers = chosen_layers(classifier.model, prepare(classifier, paths[:1]), args)
    sums: dict[str, Tensor] = {}
    for start in progress(range(0, len(paths), args.batch_size), name):
        inputs = prepare(classifier, paths[start:start + args.batch_size])
        for layer in layers:
            field = receptive_field(classifier.model, layer.name, inputs).double().cpu() * len(inputs)
            sums[layer.label] = sums[layer.label] + field if layer.label in sums else field
    return {label: field / len(paths) for label, field in sums.items()}


def receptive_fields(args: argparse.Namespace) -> None:
    """Measures the effective receptive field of layers, and draws it with --output.

    It is the gradient of the middle pixel of a layer's feature map with respect to the input, its absolute values
    averaged over images. Printed: the smallest fraction of the area that holds half, or nine tenths, of the gradient.
    """
    paths = find_images(args.images, args.count)
    fields = {name: fields_of(classifier, name, paths, args) for name, classifier in load_networks(args).items()}
    areas = {(name, label): [f'{largest_pixels(field, fraction).double().mean():.2%}' for fraction in FRACTIONS]
             for name, layers in fields.items() for label, field in layers.items()}
    size = ' x '.join(map(str, next(iter(next(iter(fields.values())).values())).shape))
    print(f'Fraction of the input ({size} pixels) that holds a fraction of the gradient, {len(paths)} images:\n')
    print(markdown_table(['network', 'layer and its feature map', *(f'{fraction:.0%}' for fraction in FRACTIONS)],
                         [[*key, *cells] for key, cells in areas.items()]))
    if not args.output:
        return
    columns = max(map(len, fields.values()))
    # One row where each network has one layer, one row per network otherwise.
    shape = (len(fields), columns) if columns > 1 else (1, len(fields))
    figure = Figure(figsize=(2.6 * shape[1] + 0.8, 2.9 * shape[0]), layout='constrained')
    grid = figure.subplots(*shape, squeeze=False)
    for cell in grid.flat:
        cell.set_axis_off()
    for cells, (name, layers) in zip(grid.reshape(len(fields), columns), fields.items()):
        for cell, (label, field) in zip(cells, layers.items()):
            held = ', '.join(f'{fraction:.0%} in {area}' for fraction, area in zip(FRACTIONS, areas[name, label]))
            shown = show(cell, (field / field.max()).clamp(min=FLOOR), f'{name}\n{label}\n{held}', fontsize=9,
                         norm=LogNorm(FLOOR, 1), cmap='magma')
    figure.colorbar(shown, ax=grid, shrink=0.8, label='gradient over that of the largest pixel')
    figure.savefig(args.output, dpi=100)


def parse_args() -> argparse.Namespace:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def add(name: str, run: object, images: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, description=run.__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(run=run)
        command.add_argument('config', help='config file of a classifier of mmpretrain')
        command.add_argument('checkpoint', help='checkpoint of a training with it')
        command.add_argument('images', nargs='+', type=Path, help=images)
        command.add_argument('--output', required=run is not receptive_fields, type=picture, help='picture to write')
        command.add_argument('--cfg-options', nargs='+', action=KeyValues, metavar='KEY=VALUE',
                             help='changes to every config, e.g. test_dataloader.dataset.pipeline.1.scale=224')
        command.add_argument('--device', type=any_device, default='cpu', help="'cpu' (default), 'cuda', ...")
        where = command
        if run is not feature_maps:
            command.add_argument('--model', nargs=2, action='append', default=[], metavar=('CONFIG', 'CHECKPOINT'),
                                 help='another network beside the first; may be repeated')
            command.add_argument('--names', nargs='+', metavar='NAME',
                                 help="names of the networks, in their order (default: the configs' file names)")
            where = command.add_mutually_exclusive_group()
            where.add_argument('--stages', action='store_true', help='every stage, not only the last one')
        where.add_argument('--layer', nargs='+', metavar='NAME',
                           help='layers of every network, e.g. backbone.stages.2.5 (default: the last block of the '
                           'last stage; feature_maps: the last token mixer of each stage)')
        return command

    command = add('grad_cam', grad_cam, f'image files, or folders with all inside; at most {MOST} images')
    command.add_argument('--class', dest='target', metavar='NAME_OR_INDEX',
                         help='class of the heat maps (default: the one that each network predicts)')
    command.add_argument('--method', choices=list(METHODS), default='gradcam', help='(default: gradcam)')
    command = add('feature_maps', feature_maps, 'one image file')
    command.add_argument('--channels', type=positive, default=4,
                         help='convolved and attended channels to draw, each (default: 4)')
    command = add('receptive_field', receptive_fields, 'image files, or folders with all inside')
    command.add_argument('--count', type=positive, default=64,
                         help='at most so many images, evenly spread over those that were found (default: 64)')
    command.add_argument('--batch-size', type=positive, default=16, help='images per pass (default: 16)')
    return parser.parse_args()


@command
def main() -> None:
    args = parse_args()
    try:
        args.run(args)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise ValueError(f'nothing was drawn: {error}') from error


if __name__ == '__main__':
    main()
