# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Runs the ONNX file of a whole model on images, folders or patterns; writes pictures and predictions.

Needs numpy, onnxruntime and Pillow only.
"""
import argparse
import glob
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from ._coco import coco_results, read_ids
from ._drawing import class_map_image
from .predictor import Predictor, Result

#: Endings of the files that are taken from a folder.
EXTENSIONS = ('.avif', '.bmp', '.dib', '.gif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.pnm', '.ppm',
              '.tif', '.tiff', '.webp')
#: Exit status for what the user can correct.
WRONG_USAGE = 2


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f'{self.prog}: {message} ({self.prog} --help shows the usage)\n')


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog='python -m partialnet_mm.deploy', description=__doc__)
    parser.add_argument('model', help='an ONNX file that tools/deployment/export_onnx.py wrote')
    parser.add_argument('images', nargs='+', help='image files, folders, which are searched with all subfolders, or '
                        "patterns such as 'photos/**/*.jpg'")
    parser.add_argument('--out-dir', required=True, type=Path,
                        help='folder for predictions.json and pictures/<image>; a segmentor also writes '
                        'class_maps/<image>.png, the label of each pixel. Nothing starts if one of these files exists, '
                        'unless --force is given')
    parser.add_argument('--force', action='store_true',
                        help='overwrite the results of an earlier run in --out-dir; inputs are never overwritten')
    parser.add_argument('--score-thr', type=float,
                        help='lowest score of a detection that is drawn; predictions.json has all (default: as the '
                        'model says)')
    parser.add_argument('--no-draw', action='store_true', help='write no pictures')
    parser.add_argument('--annotations', type=Path, metavar='FILE',
                        help='COCO annotation file with the ids of the images, by file_name, and of the classes; '
                        'predictions.json then has these (default: image_id is the name of the image)')
    parser.add_argument('--threads', type=_positive, help='threads of an operator (default: one per core)')
    parser.add_argument('--providers', nargs='+', default=['CPUExecutionProvider'], metavar='NAME',
                        help="onnxruntime's execution providers, the preferred one first (default: "
                        'CPUExecutionProvider)')
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a number of at least 1, got {text}')
    return int(text)


def find_images(inputs: Sequence[str], out_dir: Path) -> dict[str, Path]:
    """Paths of all images by the names of their results.

    Raises:
        ValueError: If there are none, two have the same name, or the results would lie in a folder of images.
    """
    images: dict[str, Path] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = {path_.relative_to(path).as_posix(): path_ for path_ in sorted(path.rglob('*'))
                     if path_.suffix.lower() in EXTENSIONS and path_.is_file()}
            if not found:
                raise ValueError(f'no image in folder {given!r}: looked for files that end in {", ".join(EXTENSIONS)}')
            if path.resolve() in (out_dir.resolve(), *out_dir.resolve().parents):
                raise ValueError(f'--out-dir {str(out_dir)!r} lies in the folder of images {given!r}: the next run '
                                 'would take its pictures for images')
        elif path.is_file():
            found = {path.name: path}
        else:
            files = [Path(name) for name in sorted(glob.glob(given, recursive=True)) if os.path.isfile(name)]
            if not files:
                raise ValueError(f'image, folder or pattern {given!r} does not exist')
            found = {}
            for file in files:
                _add(found, file.name, file)
        for name, file in found.items():
            _add(images, name, file)
    return images


def _add(images: dict[str, Path], name: str, path: Path) -> None:
    if images.setdefault(name, path) != path:
        raise ValueError(f'{str(images[name])!r} and {str(path)!r} would both give {name!r} in --out-dir: run them '
                         'separately')


class Outputs:
    """The files of a run."""

    def __init__(self, out_dir: Path, draws: bool, task: str) -> None:
        self.predictions = out_dir / 'predictions.json'
        self.pictures = out_dir / 'pictures' if draws else None
        self.class_maps = out_dir / 'class_maps' if task == 'segmentation' else None

    def of(self, name: str) -> tuple[Path | None, Path | None]:
        """The picture and the class map of an image."""
        ending = '' if Path(name).suffix.lower() in ('.jpg', '.jpeg', '.png') else '.png'
        return (self.pictures and self.pictures / (name + ending),
                self.class_maps and self.class_maps / (name + '.png'))

    def refuse_overwrites(self, images: dict[str, Path], inputs: Sequence[Path], force: bool) -> None:
        """Raises a ValueError if a file that would be written is an input, or exists and ``force`` is False."""
        written = [self.predictions, *(path for name in images for path in self.of(name) if path)]
        twice = next((path for path, count in Counter(written).items() if count > 1), None)
        if twice:
            raise ValueError(f'two images would both give {str(twice)!r}: run them separately')
        read = {path.resolve() for path in (*images.values(), *inputs)}
        for path in written:
            if path.resolve() in read or (path.exists() and any(path.samefile(source) for source in inputs)):
                raise ValueError(f'{str(path)!r} is not written: it would overwrite the input. Name another --out-dir')
            if path.is_dir():
                raise ValueError(f'{str(path)!r} is not written: it is a folder')
            if os.path.lexists(path) and not force:
                raise ValueError(f'{str(path)!r} is not written: it exists. --force overwrites it')

    def write(self, name: str, result: Result, score_threshold: float | None) -> None:
        """Writes the picture and the class map of an image."""
        picture, class_map = self.of(name)
        if picture:
            picture.parent.mkdir(parents=True, exist_ok=True)
            result.draw(score_threshold).save(picture, quality=95)
        if class_map:
            class_map.parent.mkdir(parents=True, exist_ok=True)
            class_map_image(result).save(class_map)


def progress(items: Sequence[str]) -> Iterator[str]:
    """The items, with a progress bar on a terminal."""
    start, total = time.monotonic(), len(items)
    for done, item in enumerate([*items, None]):
        if sys.stderr.isatty():
            bar = '=' * (30 * done // total)
            left = (time.monotonic() - start) / done * (total - done) if done else 0
            sys.stderr.write(f'\r[{bar:30}] {done}/{total} images, {left:.0f} s left ' + '\n' * (done == total))
            sys.stderr.flush()
        if item is not None:
            yield item


def run(args: argparse.Namespace) -> int:
    """Predicts all images; returns 1 if there was one without a prediction or picture."""
    try:
        predictor = Predictor(args.model, args.threads, args.providers)
        metadata = predictor.metadata
        images = find_images(args.images, args.out_dir)
        outputs = Outputs(args.out_dir, not args.no_draw, metadata.task)
        inputs = [Path(args.model)] + ([args.annotations] if args.annotations else [])
        outputs.refuse_overwrites(images, inputs, args.force)
        image_ids: dict[str, int | str] = {name: name for name in images}
        category_ids = metadata.category_ids or range(len(metadata.classes))
        if args.annotations:
            image_ids, category_ids = read_ids(args.annotations, metadata, list(images))
        args.out_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ValueError(f'nothing was started: {error}') from error
    entries, broken, undrawn = [], [], []
    for name in progress(list(images)):
        try:
            result = predictor(images[name])
        except Exception as error:  # Pillow and onnxruntime raise many types
            broken.append(f'{images[name]}: {" ".join(str(error).split())[:300] or type(error).__name__}')
            continue
        entries += coco_results(result, image_ids[name], category_ids)
        try:
            outputs.write(name, result, args.score_thr)
        except OSError as error:
            undrawn.append(f'{images[name]}: {error}')
    outputs.predictions.write_text(json.dumps(entries))
    pictures = '' if args.no_draw else f', pictures in {outputs.pictures}'
    sys.stdout.write(f'{len(images) - len(broken)} images: predictions in {outputs.predictions}{pictures}\n')
    if broken:
        sys.stderr.write(f'{len(broken)} images have no prediction:\n' + '\n'.join(broken) + '\n')
    if undrawn:
        sys.stderr.write(f'{len(undrawn)} images have no picture or class map:\n' + '\n'.join(undrawn) + '\n')
    return int(bool(broken or undrawn))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; a mistake that its user can correct is one sentence and status 2."""
    args = parse_args(arguments)
    try:
        return run(args)
    except (OSError, ValueError) as error:
        sys.stderr.write(f'python -m partialnet_mm.deploy: {error}\n')
        return WRONG_USAGE


if __name__ == '__main__':
    sys.exit(main())
