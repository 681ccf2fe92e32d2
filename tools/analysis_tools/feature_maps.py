# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Draws what partial attention convolutions make of an image: their convolved and attended channels, and their gates.

Layers are drawn one below the other: for each, some channels as they come in and, below, as they go out; the values of
all channel gates, where the attention has such (PAT_ch); and the spatial gate of the PAT_sp that follows in the same
block. The channels are those that go out with the largest deviation over the places. Each map has a scale of its own.
"""
import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mmcv
import numpy as np
import torch
from look_setup import add_arguments, find_images, require_picture
from torch import Tensor

from partialnet_mm.analysis.split_maps import SplitMaps, split_maps, splitting_layers
from partialnet_mm.analysis.trained_classifier import load_classifier, prepare

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, 'one image file', several=False)
    parser.add_argument('--output', required=True, type=Path, help='picture to write: .png, .jpg, .svg, .pdf')
    parser.add_argument('--layer', nargs='+', metavar='NAME',
                        help='e.g. backbone.stages.2.5.token_mixer (default: the last one of each stage)')
    parser.add_argument('--channels', type=int, default=4, help='to draw of either part (default: 4)')
    args = parser.parse_args()
    if args.channels < 1:
        parser.error(f'--channels must be positive, got {args.channels}')
    if len(args.images) > 1 or args.images[0].is_dir():
        parser.error(f'one image file is drawn, got {" ".join(map(str, args.images))}')
    return args


def last_of_each_size(model: torch.nn.Module, image: Tensor) -> dict[str, SplitMaps]:
    """The last layer that returns maps of a size, for every size.

    Raises:
        ValueError: If no layer divides its channels.
    """
    names = splitting_layers(model)
    if not names:
        raise ValueError('no layer of this network divides its channels into a convolved and an attended part; '
                         'tools/analysis_tools/grad_cam.py and receptive_field.py look into any classifier')
    found = split_maps(model, names, image)
    last = {maps.convolved_out.shape[1:]: name for name, maps in found.items()}
    return {name: found[name] for name in last.values()}


def show(cell: 'Axes', values: Tensor | None, title: str = '', **options: object) -> None:
    """Draws a map (H, W), or nothing."""
    cell.set_axis_off()
    if values is not None:
        cell.imshow(values.cpu().numpy(), **options)
        cell.set_title(title, fontsize=8)


def show_channels(cells: np.ndarray, before: Tensor, after: Tensor, gate: Tensor | None, first: int) -> None:
    """Draws channels of one part in (2, n) cells, as they come in above as they go out.

    ``first`` is the number of the part's first channel in the layer.
    """
    order = after.flatten(1).std(dim=1).argsort(descending=True, stable=True)
    chosen = order[:cells.shape[1]].sort().values.tolist()
    for column in cells.T[len(chosen):].flat:
        show(column, None)
    for (above, below), channel in zip(cells.T, chosen):
        show(above, before[channel], str(first + channel), cmap='gray')
        show(below, after[channel], '' if gate is None else f'gate {gate[channel]:.2f}', cmap='gray')


def draw(found: dict[str, SplitMaps], photograph: np.ndarray, channels: int, path: Path) -> None:
    """Draws the layers one below the other."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    figure = plt.figure(figsize=(1.2 * (2 * channels + 3), 3 * len(found)), layout='constrained')
    for part, (name, maps) in zip(figure.subfigures(len(found), squeeze=False)[:, 0], found.items()):
        height, width = maps.convolved_out.shape[1:]
        part.suptitle(f'{name.replace("backbone.", "", 1)}, {height} x {width}: {len(maps.convolved_out)} channels '
                      f'convolved (left), {len(maps.attended_out)} attended (middle); in above, out below', fontsize=10)
        grid = part.add_gridspec(2, 2 * channels + 2, width_ratios=[1] * 2 * channels + [2, 1])
        cells = np.array([[part.add_subplot(grid[row, column]) for column in range(2 * channels)] for row in range(2)])
        show_channels(cells[:, :channels], maps.convolved_in, maps.convolved_out, None, 0)
        show_channels(cells[:, channels:], maps.attended_in, maps.attended_out, maps.gate, maps.first_attended)
        gates = part.add_subplot(grid[:, -2])
        if maps.gate is None:
            gates.set_axis_off()
            gates.set_title('no channel gates', fontsize=8)
        else:
            gates.bar(range(len(maps.gate)), sorted(maps.gate.tolist(), reverse=True), width=1)
            gates.set_ylim(0, 1)
            gates.tick_params(labelsize=7)
            gates.set_title('channel gates, sorted', fontsize=8)
        show(part.add_subplot(grid[0, -1]), maps.spatial_gate, 'PAT_sp gate', vmin=0, vmax=1, cmap='viridis')
        corner = part.add_subplot(grid[1, -1])
        corner.imshow(photograph)
        corner.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def print_gates(found: dict[str, SplitMaps]) -> None:
    """Prints the gates of the layers as Markdown."""
    print('| layer | channels convolved | attended | channel gates: lowest | mean | highest | PAT_sp gate: lowest | '
          'mean | highest |\n|---|---|---|---|---|---|---|---|---|')
    for name, maps in found.items():
        cells = []
        for gate in (maps.gate, maps.spatial_gate):
            cells += ['-'] * 3 if gate is None else [f'{value:.2f}' for value in (gate.min(), gate.mean(), gate.max())]
        print(f'| {name.replace("backbone.", "", 1)} | {len(maps.convolved_out)} | {len(maps.attended_out)} | '
              f'{" | ".join(cells)} |')


def main() -> int | None:
    args = parse_args()
    try:
        require_picture(args.output)
        image, = find_images(args.images)
        classifier = load_classifier(args.config, args.checkpoint, args.cfg_options, args.device)
        inputs = prepare(classifier, [image])
        model = classifier.model
        found = split_maps(model, args.layer, inputs) if args.layer else last_of_each_size(model, inputs)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f'nothing was drawn: {error}', file=sys.stderr)
        return 1
    print_gates(found)
    draw(found, mmcv.imread(image, channel_order='rgb'), args.channels, args.output)
    return None


if __name__ == '__main__':
    sys.exit(main())
