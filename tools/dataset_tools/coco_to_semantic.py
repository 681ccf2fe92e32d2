# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Turns COCO instance masks into mmsegmentation's folders.

Images go to ROOT/img_dir/SPLIT, label images of the same names to ROOT/ann_dir/SPLIT as PNG: 0 is background, then the
categories in the order of their ids, 255 is left out of training and measuring (crowds). No source is ever written to.
"""
import argparse
import shutil
from pathlib import Path, PurePath
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from rich.progress import track

from partialnet_mm.checkpoint.atomic import refuse_overwrite
from partialnet_mm.engine.runners.user_errors import ToolParser, command
from partialnet_mm.preflight import check_coco, errors_in, format_findings

IGNORED = 255


def semantic_map(coco: COCO, image: dict, labels: dict[int, int]) -> np.ndarray:
    """The label of each pixel, (H, W) in uint8.

    Smaller objects lie over larger ones, and over crowds.
    """
    height, width = image['height'], image['width']
    labelled = np.zeros((height, width), np.uint8)
    annotations: list[dict] = coco.loadAnns(coco.getAnnIds(imgIds=image['id']))
    for annotation in sorted(annotations, key=lambda a: (a.get('iscrowd', 0), a['area']), reverse=True):
        mask = mask_utils.decode(coco.annToRLE(annotation)).astype(bool)
        labelled[mask] = IGNORED if annotation.get('iscrowd', 0) else labels[annotation['category_id']]
    return labelled


class Files(NamedTuple):
    """The source of an image, its copy or link, and its label image."""

    source: Path
    image: Path
    labels: Path


def plan(args: argparse.Namespace, names: list[str]) -> list[Files]:
    """Names all files before the first is written.

    Raises:
        ValueError: If a name leaves its folder, or a file would be written over.
    """
    files = []
    for name in names:
        if PurePath(name).is_absolute() or '..' in PurePath(name).parts:
            raise ValueError(f'{args.annotations} names the image {name!r}: names must be relative to the folder '
                             "of the images, without '..'")
        files.append(Files(Path(args.images, name), Path(args.root, 'img_dir', args.split, name),
                           Path(args.root, 'ann_dir', args.split, name).with_suffix('.png')))
    sources = {source.resolve() for source, *_ in files}
    for source, *targets in files:
        for target in targets:
            # The file itself: a link that lies there is replaced, and what it points to stays.
            path = target.parent.resolve() / target.name
            if path in sources:
                raise ValueError(f'{str(target)!r} is not written: it is one of the source images')
            if not (args.force and target.is_symlink()):
                refuse_overwrite(target, (args.annotations, source), args.force)
    return files


@command
def main() -> None:
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('annotations', help='COCO annotation file')
    parser.add_argument('images', help='folder where the images of that file are')
    parser.add_argument('root', help='folder to write to')
    parser.add_argument('split', help="name of the split, such as 'train'")
    parser.add_argument('--symlink', action='store_true', help='link the images instead of copying them')
    parser.add_argument('--force', action='store_true', help='write over existing files, never over a source')
    args = parser.parse_args()

    findings = check_coco(args.annotations, args.images, images=None)
    if errors_in(findings):
        parser.exit(1, f'{format_findings(findings)}\nNothing was written.\n')
    coco = COCO(args.annotations)
    categories = sorted(coco.dataset['categories'], key=lambda category: category['id'])
    if len(categories) >= IGNORED:
        parser.error(f'{args.annotations} has {len(categories)} categories; a label image in uint8 has room for '
                     f'{IGNORED - 1}')
    labels = {category['id']: i for i, category in enumerate(categories, start=1)}
    suffixes = sorted({Path(image['file_name']).suffix for image in coco.dataset['images']})
    if len(suffixes) > 1:
        parser.error(f'{args.annotations} names images of the kinds {suffixes}; mmsegmentation takes one (img_suffix)')

    try:
        files = plan(args, [image['file_name'] for image in coco.dataset['images']])
    except ValueError as error:
        parser.error(f'{error}. Nothing was written')

    counts = np.zeros(IGNORED + 1, np.int64)
    for image, (source, target, label_path) in zip(track(coco.dataset['images'], description=args.split), files):
        labelled = semantic_map(coco, image, labels)
        counts += np.bincount(labelled.ravel(), minlength=len(counts))
        for path in (target, label_path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        if args.symlink:
            target.symlink_to(source.resolve())
        else:
            shutil.copyfile(source, target)
        if not cv2.imwrite(str(label_path), labelled):
            raise OSError(f'{label_path} cannot be written')

    names = ['background', *(category['name'] for category in categories)]
    print(f'{args.root}: {len(coco.dataset["images"])} images in img_dir/{args.split} and ann_dir/{args.split}')
    for label, name in [*enumerate(names), (IGNORED, 'left out')]:
        print(f'  {label:3}  {name:12}  {counts[label] / counts.sum():6.1%} of all pixels')
    print(f'In the config: img_suffix={suffixes[0]!r}, metainfo=dict(classes={tuple(names)})')


if __name__ == '__main__':
    main()
