# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Turns annotated pictures of other tools into the layout of the own-data configs.

OUTPUT gets images/ and annotations/instances_{train,val}.json; with --to yolo, images/, labels/ and data.yaml. What is
left out is printed with the reason, and listed in OUTPUT/left_out.txt. No file of the source is changed.
"""
import argparse
import json
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from pycocotools import mask as mask_utils

from partialnet_mm.datasets import AnnotatedPictures, Picture, Shape, read_annotated_pictures
from partialnet_mm.datasets.annotation_files import READERS, rectangle

#: Places that a reason is printed with.
SHOWN = 3


def fraction(text: str) -> float:
    """A number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'must be a number from 0 to below 1, got {text!r}')
    return value


def split_pictures(pictures: Sequence[Picture], val: float | None, seed: int) -> dict[str, list[Picture]]:
    """The pictures by split: by the source's own folders if ``val`` is None and it has them, otherwise at random."""
    own = {picture.split for picture in pictures}
    if val is None and None not in own and {'train', 'val'} <= own:
        splits: dict[str, list[Picture]] = defaultdict(list)
        for picture in pictures:
            splits[picture.split].append(picture)
        return dict(splits)
    shuffled = list(pictures)
    random.Random(seed).shuffle(shuffled)
    val = 0.2 if val is None else val
    # At least one picture to validate with, and one to train with.
    count = min(max(round(len(shuffled) * val), 1 if val else 0), len(shuffled) - 1)
    held_out = {picture.path for picture in shuffled[:count]}
    return dict(train=[picture for picture in pictures if picture.path not in held_out],
                val=[picture for picture in pictures if picture.path in held_out])


def annotation(shape: Shape, picture: Picture, with_masks: bool) -> dict:
    """A shape as COCO has it, without ids; a box alone gets a rectangular mask where other objects have masks."""
    x1, y1, x2, y2 = shape.box
    outline = shape.outline or ([rectangle(shape.box)] if with_masks else [])
    area = (x2 - x1) * (y2 - y1)
    if shape.outline:
        coded = outline
        if isinstance(outline, list):
            coded = mask_utils.merge(mask_utils.frPyObjects(outline, picture.height, picture.width))
        area = float(mask_utils.area(coded))
    return dict(bbox=[round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)], area=round(area, 3),
                iscrowd=int(shape.left_out), segmentation=outline)


def write_coco(source: AnnotatedPictures, splits: dict[str, list[Picture]], names: dict[Path, Path], output: Path,
               ) -> list[str]:
    """Writes the annotation files; returns notes."""
    numbers = {name: number for number, name in enumerate(source.classes, start=1)}
    every = [shape for picture in source.pictures for shape in picture.shapes]
    with_masks = any(shape.outline for shape in every)
    for split, pictures in splits.items():
        images, annotations = [], []
        for image_id, picture in enumerate(pictures, start=1):
            images.append(dict(id=image_id, file_name=names[picture.path].as_posix(), width=picture.width,
                               height=picture.height))
            for shape in picture.shapes:
                annotations.append(dict(id=len(annotations) + 1, image_id=image_id, category_id=numbers[shape.label],
                                        **annotation(shape, picture, with_masks)))
        path = output / 'annotations' / f'instances_{split}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=[
            dict(id=number, name=name) for name, number in numbers.items()])), encoding='utf-8')
    if not with_masks:
        return ['The objects are boxes: train with configs/faster_rcnn or configs/rtmdet.']
    notes = ['The objects have masks: train with configs/mask_rcnn, or for boxes alone with configs/faster_rcnn or '
             'configs/rtmdet.']
    boxes = sum(not shape.outline for shape in every)
    if boxes:
        notes.append(f'{boxes} of {len(every)} objects are boxes alone: their masks are rectangles.')
    return notes


def write_yolo(source: AnnotatedPictures, splits: dict[str, list[Picture]], names: dict[Path, Path], output: Path,
               ) -> list[str]:
    """Writes a label file per image and data.yaml; returns notes."""
    numbers = {name: number for number, name in enumerate(source.classes)}
    every = [shape for picture in source.pictures for shape in picture.shapes if not shape.left_out]
    with_masks = bool(every) and all(isinstance(shape.outline, list) and len(shape.outline) == 1 for shape in every)
    for pictures in splits.values():
        for picture in pictures:
            size = np.array([picture.width, picture.height])
            lines = []
            for shape in picture.shapes:
                if shape.left_out:
                    continue
                x1, y1, x2, y2 = shape.box
                points = (shape.outline[0] if with_masks else
                          [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
                values = (np.array(points).reshape(-1, 2) / size).ravel()
                lines.append(' '.join([str(numbers[shape.label]), *(f'{value:.6f}' for value in values)]))
            path = (output / 'labels' / names[picture.path]).with_suffix('.txt')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
    content = dict(path='.', **{split: f'images/{split}' for split in splits}, names=dict(enumerate(source.classes)))
    (output / 'data.yaml').write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding='utf-8')
    notes = []
    left_out = sum(shape.left_out for picture in source.pictures for shape in picture.shapes)
    if left_out:
        notes.append(f'{left_out} crowds and difficult objects are not written: YOLO has no word for them.')
    if any(shape.outline for shape in every) and not with_masks:
        notes.append('Boxes are written: not every object has one polygon, as YOLO takes it.')
    return notes


def name_images(splits: dict[str, list[Picture]], folder: Path, yolo: bool) -> dict[Path, Path]:
    """The name of each image below images/, by its path: that below the source, without folders called "images".

    Raises:
        ValueError: If two images would have one label file of YOLO.
    """
    names: dict[Path, Path] = {}
    for split, pictures in splits.items():
        for picture in pictures:
            parts = [part for part in picture.path.relative_to(folder).parts if part != 'images']
            if yolo:  # its folders are the splits
                parts = [split, *(parts[1:] if len(parts) > 1 and parts[0] in splits else parts)]
            names[picture.path] = Path(*parts)
    if yolo:
        files = Counter(name.with_suffix('') for name in names.values())
        twice = sorted(str(name) for name, count in files.items() if count > 1)
        if twice:
            raise ValueError(f'several images would have one label file, first {twice[0]!r}: rename them')
    elif len(set(names.values())) < len(names):
        return {path: path.relative_to(folder) for path in names}
    return names


def refuse_output(folder: Path, output: Path) -> None:
    """Raises a ValueError if the output would write over something, or into the source."""
    if output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f'{str(output)!r} is in the folder of the source, which is never changed: --output DIR')
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f'{str(output)!r} exists and is not an empty folder: nothing is written over')


def report(source: AnnotatedPictures, splits: dict[str, list[Picture]], output: Path) -> None:
    """Prints the objects by class and split, and what was left out."""
    counts = {split: Counter(shape.label for picture in pictures for shape in picture.shapes)
              for split, pictures in splits.items()}
    width = max(map(len, [*source.classes, 'images without objects']))
    print(f'{"":{width}}' + ''.join(f'{split:>8}' for split in splits))
    rows = [('images', [len(pictures) for pictures in splits.values()]),
            ('images without objects', [sum(not picture.shapes for picture in pictures)
                                        for pictures in splits.values()]),
            *((name, [counts[split][name] for split in splits]) for name in source.classes)]
    for name, values in rows:
        print(f'{name:{width}}' + ''.join(f'{value:8}' for value in values))
    for split in splits:
        empty = [name for name in source.classes if not counts[split][name]]
        if empty:
            print(f'No objects in {split}: {empty}. Another --seed splits otherwise.')
    by_reason: dict[str, list[str]] = defaultdict(list)
    for where, why in source.dropped:
        by_reason[why].append(where)
    for why, places in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        more = f' and {len(places) - SHOWN} more' if len(places) > SHOWN else ''
        print(f'Left out {len(places)}: {why}: {", ".join(places[:SHOWN])}{more}')
    if source.dropped:
        (output / 'left_out.txt').write_text(''.join(f'{where}: {why}\n' for where, why in source.dropped),
                                             encoding='utf-8')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='folder of the images and annotations, or one annotation file in it')
    parser.add_argument('--from', dest='kind', required=True, choices=READERS, help='format of the annotations')
    parser.add_argument('--to', choices=['coco', 'yolo'], default='coco', help='format to write (default: coco)')
    parser.add_argument('--output', type=Path, help='folder to write; must be new or empty (default: SOURCE_coco)')
    parser.add_argument('--val', type=fraction, metavar='FRACTION',
                        help='images to hold out (default: the folders train and val of the source, otherwise 0.2)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the split (default: 0)')
    parser.add_argument('--label-key', help='for via: the attribute of a region that names its class')
    parser.add_argument('--symlink', action='store_true', help='link the images instead of copying them')
    args = parser.parse_args()
    if args.label_key and args.kind != 'via':
        parser.error(f'--label-key is for --from via, got --from {args.kind}')
    folder = args.source.parent if args.source.is_file() else args.source
    output = args.output or folder.resolve().with_name(f'{folder.resolve().name}_{args.to}')
    try:
        refuse_output(folder, output)
        source = read_annotated_pictures(args.source, args.kind, args.label_key)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not source.pictures:
        reasons = Counter(why for _, why in source.dropped).most_common(SHOWN)
        parser.exit(1, f'{str(args.source)!r} has no image that can be used: '
                    + '; '.join(f'{count} times: {why}' for why, count in reasons) + '. Nothing was written.\n')

    splits = split_pictures(source.pictures, args.val, args.seed)
    try:
        names = name_images(splits, folder, args.to == 'yolo')
    except ValueError as error:
        parser.error(str(error))
    for path, relative in names.items():
        target = output / 'images' / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if args.symlink:
            target.symlink_to(path.resolve())
        else:
            shutil.copyfile(path, target)
    write = write_yolo if args.to == 'yolo' else write_coco
    notes = write(source, splits, names, output)
    report(source, splits, output)
    print(*notes, f'{output}: {len(names)} images', sep='\n')


if __name__ == '__main__':
    main()
