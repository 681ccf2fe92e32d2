# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Draws what trained classifiers look at: heat maps of Grad-CAM over photographs, one column a network.

Images come in the first column; above each heat map stand the class that the network predicts and its score. The map
is of that class, or of --class. It says what speaks for the class as the layer sees it, each map on a scale of its own;
"empty" is a map where nothing does.
"""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from look_setup import add_arguments, find_images, load_networks, require_picture

from partialnet_mm.analysis.heat_maps import METHODS, cam_method, heat_maps
from partialnet_mm.analysis.map_layers import find_map_layer, stage_layers
from partialnet_mm.analysis.trained_classifier import find_class, prepare, seen_box

if TYPE_CHECKING:
    from mmpretrain.apis import ImageClassificationInferencer

#: Most images of one picture.
MOST = 16
#: Longer side of a photograph in the picture, in pixels.
SIDE = 200
#: How many letters of a file's name, the last ones, stand above its photograph.
LETTERS = 30


class Column(NamedTuple):
    """One network at one layer: a heading, and for each image a title and a photograph in RGB."""
    heading: str
    titles: list[str]
    pictures: list[np.ndarray]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, f'image files, or folders, which are searched with all inside; at most {MOST} images')
    parser.add_argument('--output', required=True, type=Path, help='picture to write: .png, .jpg, .svg, .pdf')
    where = parser.add_mutually_exclusive_group()
    where.add_argument('--layer', nargs='+', metavar='NAME', help='layers of every network, e.g. backbone.stages.2.5; '
                       "one column for each (default: the last stage's last block)")
    where.add_argument('--stages', action='store_true', help='one column for each stage: every size of the maps')
    parser.add_argument('--class', dest='target', metavar='NAME_OR_INDEX',
                        help='class that the maps are of (default: the one that each network predicts)')
    parser.add_argument('--method', choices=list(METHODS), default='gradcam', help='(default: gradcam)')
    return parser.parse_args()


def enlarge(picture: np.ndarray) -> np.ndarray:
    """A picture whose longer side is SIDE pixels."""
    factor = SIDE / max(picture.shape[:2])
    size = tuple(max(1, round(factor * length)) for length in picture.shape[1::-1])
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def draw_over(photograph: np.ndarray, heat: np.ndarray, box: Sequence[int]) -> np.ndarray:
    """The heat map over the part of the photograph that the network has seen; the rest stays as it is."""
    from pytorch_grad_cam.utils.image import show_cam_on_image
    picture = enlarge(photograph)
    factor = np.array(picture.shape[1::-1] * 2) / (photograph.shape[1::-1] * 2)
    left, top, right, bottom = np.round(np.array(box) * factor).astype(int)
    heat = np.clip(cv2.resize(heat, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR), 0, 1)
    seen = picture[top:bottom, left:right].astype(np.float32) / 255
    picture[top:bottom, left:right] = show_cam_on_image(seen, heat, use_rgb=True)
    return picture


def look(name: str, classifier: 'ImageClassificationInferencer', paths: Sequence[str], photographs: list[np.ndarray],
         args: argparse.Namespace) -> list[Column]:
    """The columns of one network.

    Raises:
        ValueError: If there is no such layer or class.
    """
    inputs = prepare(classifier, paths)
    with torch.no_grad():
        samples = classifier.model(inputs, mode='predict')
    scores = [sample.pred_score for sample in samples]
    names = classifier.classes or [f'class {i}' for i in range(len(scores[0]))]
    best = [int(score.argmax()) for score in scores]
    titles = [f'{names[label]} {score[label]:.2f}' for label, score in zip(best, scores)]
    labels = best
    if args.target is not None:
        label = find_class(classifier.classes, len(scores[0]), args.target)
        labels = [label] * len(best)
        titles = [title if own == label else f'{title} ({names[label]} {score[label]:.2f})'
                  for title, own, score in zip(titles, best, scores)]
    if args.layer:
        layers = [find_map_layer(classifier.model, inputs, layer) for layer in args.layer]
    else:
        layers = stage_layers(classifier.model, inputs)
        layers = layers if args.stages else layers[-1:]
    boxes = [seen_box(classifier, *photograph.shape[:2]) for photograph in photographs]
    columns = []
    for layer in layers:
        heats = heat_maps(classifier.model, layer.name, inputs, labels, args.method)
        pictures = [draw_over(*part) for part in zip(photographs, heats, boxes)]
        heading = f'{name}\n{layer.name.replace("backbone.", "", 1)}, {layer.height} x {layer.width}'
        marked = [title if heat.max() > 0 else f'{title}, empty' for title, heat in zip(titles, heats)]
        columns.append(Column(heading, marked, pictures))
    return columns


def draw(columns: list[Column], path: Path) -> None:
    """Draws the columns side by side."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    rows = len(columns[0].pictures)
    figure, grid = plt.subplots(rows, len(columns), figsize=(2.2 * len(columns), 2.3 * rows + 0.5), squeeze=False,
                                layout='constrained')
    for cells, column in zip(grid.T, columns):
        for i, (cell, title, picture) in enumerate(zip(cells, column.titles, column.pictures)):
            cell.imshow(picture)
            cell.set_axis_off()
            cell.set_title(f'{column.heading}\n\n{title}' if i == 0 else title, fontsize=9)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def main() -> int | None:
    args = parse_args()
    try:
        require_picture(args.output)
        cam_method(args.method)
        paths = find_images(args.images)
        if len(paths) > MOST:
            raise ValueError(f'{len(paths)} images are more than the {MOST} of a picture')
        networks = load_networks(args)
        photographs = [mmcv.imread(path, channel_order='rgb') for path in paths]
        titles = ['/'.join(Path(path).parts[-2:])[-LETTERS:] for path in paths]
        columns = [Column('image', titles, [enlarge(photograph) for photograph in photographs])]
        for name, classifier in networks.items():
            columns += look(name, classifier, paths, photographs, args)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f'nothing was drawn: {error}', file=sys.stderr)
        return 1
    draw(columns, args.output)
    print(f'{len(paths)} images and {len(networks)} networks in {args.output}')
    return None


if __name__ == '__main__':
    sys.exit(main())
