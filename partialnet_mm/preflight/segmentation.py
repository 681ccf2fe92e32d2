# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks of images with label images, mmsegmentation's BaseSegDataset."""
import os
from collections.abc import Callable, Iterator
from typing import Any

import mmcv
import numpy as np

from .files import Files
from .findings import Finding, listed
from .images import check_image, sample, shortened


def check_segmentation(dataset: Any, load: Callable[[dict], dict | None], load_labels: Any, learns: bool,
                       outputs: int | None, images: int | None, files: Files) -> Iterator[Finding]:
    """Checks a data set that is fully initialized.

    Args:
        dataset: A BaseSegDataset.
        load: Loads an image as its pipeline does.
        load_labels: The pipeline's transform that loads label images, None if it has none.
        learns: Whether a training learns from them.
        outputs: Number of classes that the model distinguishes, None if that is not known.
        images: Number of pairs to decode, None for all.
        files: Answers whether files exist.

    Yields:
        Errors and notes.
    """
    file = dataset.ann_file or dataset.data_prefix.get('img_path') or ''
    infos = dataset.data_list
    if not infos:
        yield Finding('no images', file, '', f'no image ends in {dataset.img_suffix!r}')
    if dataset.ann_file:
        files.reads(dataset.ann_file)
    there = infos
    for kind, key in [('image missing', 'img_path'), ('label image missing', 'seg_map_path')][:2 if load_labels else 1]:
        missing = [info for info in infos if not files.exists(info.get(key) or '')]
        yield from listed(kind, file, missing, lambda info, key=key: str(info.get(key)),
                          lambda info: 'the file does not exist')
        gone = {info['img_path'] for info in missing}
        there = [info for info in there if info['img_path'] not in gone]
    chosen = sample(there, images)
    seen: set[int] = set()
    for info in chosen:
        files.reads(info['img_path'])
        loaded: dict[str, Any] = {}
        found = check_image(info['img_path'], None, load, loaded, info)
        if load_labels and loaded:
            files.reads(info['seg_map_path'])
            found += _check_labels(info['seg_map_path'], loaded, load_labels, dataset, learns, outputs, seen)
        yield from found
    if load_labels and learns and chosen and len(seen - {dataset.ignore_index}) < 2:
        yield Finding('nothing to learn', file, '', f'the label images that were read have no other labels than '
                      f'{sorted(seen)}; {dataset.ignore_index} is left out of training', len(chosen) < len(there))


def _check_labels(path: str, loaded: dict, load_labels: Any, dataset: Any, learns: bool, outputs: int | None,
                  seen: set[int]) -> Iterator[Finding]:
    try:
        labels = load_labels(loaded)['gt_seg_map']
        raw = mmcv.imread(path, flag='unchanged', backend=getattr(load_labels, 'imdecode_backend', 'pillow'))
    except Exception as error:  # each backend of mmcv raises other types
        yield Finding('label image broken', path, '', f'{os.path.getsize(path)} bytes that do not decode: '
                      f'{shortened(error)}')
        return
    if labels.ndim != 2:
        yield Finding('label image channels', path, '', f'it has the shape {labels.shape}; it needs one number per '
                      'pixel, the label, not colours')
        return
    size = loaded['img'].shape[:2]
    if labels.shape != size:
        yield Finding('label image size', path, '', f'it is {labels.shape[1]} x {labels.shape[0]}, its image '
                      f'{size[1]} x {size[0]}')
    cut = [value for value in np.unique(raw).tolist() if not 0 <= value <= 255 and value % 256 != dataset.ignore_index]
    if cut:
        yield Finding('label image values', path, '', f'it has the values {cut[:10]}, of which mmseg keeps the lower 8 '
                      'bits')
    values = np.unique(labels).tolist()
    seen.update(values)
    classes = dataset.metainfo.get('classes')
    limits = [outputs] if learns and outputs else [number for number in (outputs, len(classes or ())) if number]
    strange = [value for value in values if value != dataset.ignore_index and limits and value >= min(limits)]
    if strange:
        yield Finding('label image values', path, '', f'it has the labels {strange[:10]} after loading; there are '
                      f'{min(limits)} classes, from 0, and {dataset.ignore_index} is left out')
