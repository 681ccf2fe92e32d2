# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Measures the effective receptive field of trained classifiers (Luo et al., 2016), and draws it with --output.

It is the gradient of the middle place of a layer's map with respect to the input, its absolute values averaged over
images. Printed as Markdown: the smallest share of the input's area that holds half, or nine tenths, of the gradient.
"""
import argparse
import sys
from pathlib import Path

from look_setup import add_arguments, find_images, load_networks, require_picture
from rich.console import Console
from rich.progress import track
from torch import Tensor

from partialnet_mm.analysis.map_layers import find_map_layer, stage_layers
from partialnet_mm.analysis.receptive_field import largest_pixels, receptive_field
from partialnet_mm.analysis.trained_classifier import prepare

#: Parts of the gradient.
PARTS = (0.5, 0.9)
#: Below this part of the largest pixel, the picture does not tell values apart.
FLOOR = 1e-4


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, 'image files, or folders, which are searched with all inside')
    parser.add_argument('--count', type=int, default=64,
                        help='at most so many images, evenly spread over those that were found (default: 64)')
    parser.add_argument('--batch-size', type=int, default=16, help='images at a time (default: 16)')
    where = parser.add_mutually_exclusive_group()
    where.add_argument('--layer', nargs='+', metavar='NAME',
                       help="layers of every network, e.g. backbone.stages.2.5 (default: the last stage's last block)")
    where.add_argument('--stages', action='store_true', help='every stage, not the last one alone')
    parser.add_argument('--output', type=Path, help='picture to write: .png, .jpg, .svg, .pdf')
    args = parser.parse_args()
    for name in ('count', 'batch_size'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} must be positive, got {getattr(args, name)}')
    return args


def measure(args: argparse.Namespace, paths: list[str]) -> dict[str, dict[str, Tensor]]:
    """The receptive field of each layer, (H, W), by network and layer.

    Raises:
        ValueError: If a network has no such layer, or cannot be loaded.
    """
    fields: dict[str, dict[str, Tensor]] = {}
    networks = load_networks(args)
    layers = {}
    for name, classifier in networks.items():
        first = prepare(classifier, paths[:1])
        if args.layer:
            layers[name] = [find_map_layer(classifier.model, first, layer) for layer in args.layer]
        else:
            found = stage_layers(classifier.model, first)
            layers[name] = found if args.stages else found[-1:]
    batches = [paths[i:i + args.batch_size] for i in range(0, len(paths), args.batch_size)]
    for name, classifier in networks.items():
        sums: dict[str, Tensor] = {}
        for batch in track(batches, description=name, console=Console(stderr=True)):
            inputs = prepare(classifier, batch)
            for layer in layers[name]:
                label = f'{layer.name.replace("backbone.", "", 1)}, {layer.height} x {layer.width}'
                field = receptive_field(classifier.model, layer.name, inputs).double().cpu() * len(batch)
                sums[label] = sums[label] + field if label in sums else field
        fields[name] = {label: field / len(paths) for label, field in sums.items()}
    return fields


def share(field: Tensor, part: float) -> str:
    """The share of the area that holds a part of the gradient."""
    return f'{largest_pixels(field, part).double().mean():.2%}'


def draw(fields: dict[str, dict[str, Tensor]], path: Path) -> None:
    """Draws gradients by their logarithm, with their shares: a row a network, or one row where each has one layer."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm
    columns = max(map(len, fields.values()))
    shape = (len(fields), columns) if columns > 1 else (1, len(fields))
    figure, grid = plt.subplots(*shape, figsize=(2.6 * shape[1] + 0.8, 2.9 * shape[0]), squeeze=False,
                                layout='constrained')
    for cells, (name, layers) in zip(grid.reshape(len(fields), columns), fields.items()):
        for cell in cells:
            cell.set_axis_off()
        for cell, (label, field) in zip(cells, layers.items()):
            shown = cell.imshow((field / field.max()).clamp(min=FLOOR).numpy(), norm=LogNorm(FLOOR, 1), cmap='magma')
            shares = ', '.join(f'{part:.0%} in {share(field, part)}' for part in PARTS)
            cell.set_title(f'{name}\n{label}\n{shares}', fontsize=9)
    figure.colorbar(shown, ax=grid, shrink=0.8, label='gradient over that of the largest pixel')
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> int | None:
    args = parse_args()
    try:
        if args.output:
            require_picture(args.output)
        paths = find_images(args.images, args.count)
        fields = measure(args, paths)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f'nothing was measured: {error}', file=sys.stderr)
        return 1
    size = ' x '.join(map(str, next(iter(next(iter(fields.values())).values())).shape))
    print(f'Share of the input ({size} pixels) that holds a part of the gradient, {len(paths)} images:\n')
    print(f'| network | layer and its map | {" | ".join(f"{part:.0%}" for part in PARTS)} |')
    print(f'|{"---|" * (2 + len(PARTS))}')
    for name, layers in fields.items():
        for label, field in layers.items():
            shares = ' | '.join(share(field, part) for part in PARTS)
            print(f'| {name} | {label} | {shares} |')
    if args.output:
        draw(fields, args.output)
    return None


if __name__ == '__main__':
    sys.exit(main())
