# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What grad_cam.py, feature_maps.py and receptive_field.py share: networks and images from a command line."""
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.backend_bases import FigureCanvasBase
from mmengine.config import DictAction

from partialnet_mm.analysis.trained_classifier import load_classifier
from partialnet_mm.preflight import check_image
from partialnet_mm.preflight.image_folder import EXTENSIONS
from partialnet_mm.preflight.images import sample

if TYPE_CHECKING:
    from mmpretrain.apis import ImageClassificationInferencer

#: Endings of the pictures that matplotlib writes.
PICTURES = tuple(f'.{ending}' for ending in FigureCanvasBase.get_supported_filetypes())


def add_arguments(parser: argparse.ArgumentParser, images: str, several: bool = True) -> None:
    """Adds a network and images, or several networks."""
    parser.add_argument('config', help='config file of a classifier of mmpretrain')
    parser.add_argument('checkpoint', help='checkpoint of a training with it')
    parser.add_argument('images', nargs='+', type=Path, help=images)
    if several:
        parser.add_argument('--model', nargs=2, action='append', default=[], metavar=('CONFIG', 'CHECKPOINT'),
                            help='another network beside the first; may be repeated')
        parser.add_argument('--names', nargs='+', metavar='NAME',
                            help="what to call the networks, the first one first (default: the configs' file names)")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='changes to every config, e.g. test_dataloader.dataset.pipeline.1.scale=224')
    parser.add_argument('--device', default='cpu', help="'cpu' (default), 'cuda', ...")


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


def require_picture(path: Path) -> None:
    """Raises a ValueError if no picture can be written there."""
    if path.suffix.lower() not in PICTURES:
        raise ValueError(f'--output {str(path)!r} must end in one of {", ".join(PICTURES)}')
    if not path.resolve().parent.is_dir():
        raise ValueError(f'--output {str(path)!r}: its folder does not exist')


def load_networks(args: argparse.Namespace) -> dict[str, ImageClassificationInferencer]:
    """The networks by name.

    Raises:
        ValueError: If there are more or fewer names than networks, or two have one name.
        Exception: As load_classifier.
    """
    pairs = [(args.config, args.checkpoint), *args.model]
    names = args.names or [Path(config).stem for config, _ in pairs]
    if len(names) != len(pairs) or len(set(names)) < len(names):
        raise ValueError(f'--names must be {len(pairs)} different names, one for each network, got {names}')
    return {name: load_classifier(config, checkpoint, args.cfg_options, args.device)
            for name, (config, checkpoint) in zip(names, pairs)}
