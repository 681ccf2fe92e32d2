# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Turns COCO instance masks into mmsegmentation's folders.

Images go to ROOT/img_dir/SPLIT, maps of the same names to ROOT/ann_dir/SPLIT as PNG: 0 is background, then the
categories in the order of their ids, 255 is left out of training and measuring (crowds).
"""
import argparse
import shutil
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from rich.progress import track

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('annotations', help='COCO annotation file')
    parser.add_argument('images', help='folder where the images of that file are')
    parser.add_argument('root', help='folder to write to')
    parser.add_argument('split', help="name of this part, 'train' for example")
    parser.add_argument('--symlink', action='store_true', help='link the images instead of copying them')
    args = parser.parse_args()

    findings = check_coco(args.annotations, args.images, images=None)
    if errors_in(findings):
        parser.exit(1, f'{format_findings(findings)}\nNothing was written.\n')
    coco = COCO(args.annotations)
    categories = sorted(coco.dataset['categories'], key=lambda category: category['id'])
    if len(categories) >= IGNORED:
        parser.error(f'{args.annotations} has {len(categories)} categories; a map in uint8 has room for {IGNORED - 1}')
    labels = {category['id']: i for i, category in enumerate(categories, start=1)}
    suffixes = sorted({Path(image['file_name']).suffix for image in coco.dataset['images']})
    if len(suffixes) > 1:
        parser.error(f'{args.annotations} names images of the kinds {suffixes}; mmsegmentation takes one (img_suffix)')

    counts = np.zeros(IGNORED + 1, np.int64)
    for image in track(coco.dataset['images'], description=args.split):
        source = Path(args.images, image['file_name'])
        target = Path(args.root, 'img_dir', args.split, image['file_name'])
        labelled = semantic_map(coco, image, labels)
        counts += np.bincount(labelled.ravel(), minlength=len(counts))
        map_path = Path(args.root, 'ann_dir', args.split, image['file_name']).with_suffix('.png')
        for path in (target, map_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if args.symlink:
            target.unlink(missing_ok=True)
            target.symlink_to(source.resolve())
        else:
            shutil.copyfile(source, target)
        if not cv2.imwrite(str(map_path), labelled):
            raise OSError(f'{map_path} cannot be written')

    names = ['background', *(category['name'] for category in categories)]
    print(f'{args.root}: {len(coco.dataset["images"])} images in img_dir/{args.split} and ann_dir/{args.split}')
    for label, name in [*enumerate(names), (IGNORED, 'left out')]:
        print(f'  {label:3}  {name:12}  {counts[label] / counts.sum():6.1%} of all pixels')
    print(f'In the config: img_suffix={suffixes[0]!r}, metainfo=dict(classes={tuple(names)})')


if __name__ == '__main__':
    main()
