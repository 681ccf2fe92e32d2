# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks of classification data, mmpretrain's CustomDataset: folders of classes, or a list of images and labels."""
import os
from collections.abc import Callable, Iterator
from typing import Any

from .files import Files
from .findings import Finding, listed
from .images import check_image, sample

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.webp')


def check_image_folder(dataset: Any, load: Callable[[dict], dict | None], outputs: int | None, images: int | None,
                       files: Files) -> Iterator[Finding]:
    """Checks a data set that is fully initialized.

    Args:
        dataset: A CustomDataset, with its data not serialized.
        load: Loads an image as its pipeline does.
        outputs: Number of classes that the model distinguishes, None if that is not known.
        images: Number of images to decode, None for all.
        files: Answers whether files exist.

    Yields:
        Errors and notes.
    """
    file = dataset.ann_file or dataset.img_prefix
    infos = dataset.data_list
    if not infos:
        yield Finding('no images', file, '', 'it names no image')
    paths = [info['img_path'] for info in infos]
    if dataset.ann_file:
        files.reads(dataset.ann_file)
        missing = [path for path in paths if not files.exists(path)]
        yield from listed('image missing', file, missing, str, lambda path: 'the file does not exist')
        gone = set(missing)
        paths = [path for path in paths if path not in gone]
    else:
        files.reads(dataset.img_prefix, *{os.path.dirname(path) for path in paths})
    classes = dataset.metainfo.get('classes')
    if dataset.with_label:
        labels = {info['gt_label'] for info in infos}
        known = outputs or (len(classes) if classes else None)
        strange = sorted(label for label in labels if label < 0 or known is not None and label >= known)
        if strange:
            yield Finding('number of classes', file, '', f'it has the labels {strange[:10]}, but the model '
                          f'distinguishes {known} classes, from 0')
        if classes and outputs and outputs != len(classes) and not strange:
            yield Finding('number of classes', file, '', f'it has {len(classes)} classes, but the model distinguishes '
                          f'{outputs}', note=True)
        empty = [name for i, name in enumerate(classes or ()) if i not in labels]
        if empty:
            yield Finding('class without images', file, '', f'{len(empty)} of {len(classes)} classes have no image, '
                          f'first {empty[:3]}', note=True)
    for path in sample(paths, images):
        files.reads(path)
        yield from check_image(path, None, load)
