# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Results in COCO's format."""
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .predictor import Metadata, Result


def coco_results(result: 'Result', image_id: int | str, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """What was found in one image, as entries of a COCO result file.

    Detection: one for each box, from high to low scores. Segmentation: one for each class in the image, as COCO's
    stuff results. Classification, which COCO has no format for: one with the five best classes.

    Args:
        result: Of one image.
        image_id: Of the image.
        category_ids: The id of each label.
    """
    height, width = result.picture.shape[:2]
    if result.probabilities is not None:
        labels, classes, scores = zip(*result.top())
        return [dict(image_id=image_id, labels=list(labels), classes=list(classes), scores=list(scores))]
    if result.class_map is not None:
        return [dict(image_id=image_id, category_id=category_ids[label],
                     segmentation=encode_mask(result.class_map == label, width))
                for label in np.unique(result.class_map) if label < len(category_ids)]
    entries = []
    for (x1, y1, x2, y2), score, label in zip(result.boxes.tolist(), result.scores.tolist(), result.labels):
        entries.append(dict(image_id=image_id, category_id=category_ids[label], bbox=[x1, y1, x2 - x1, y2 - y1],
                            score=score))
    if result.mask_probabilities is not None:
        for entry, (part, (rows, columns)) in zip(entries, result.mask_parts()):
            mask = np.zeros((height, part.shape[1]), bool)
            mask[rows] = part
            entry['segmentation'] = encode_mask(mask, width, columns.start)
    return entries


def encode_mask(columns: np.ndarray, width: int, start: int = 0) -> dict[str, Any]:
    """A mask in COCO's compressed run-length code.

    Args:
        columns: (H, n), bool: the columns of the mask that may be set.
        width: All columns of the mask.
        start: The first of the given ones.
    """
    height = columns.shape[0]
    flat = np.zeros(columns.size + 2, np.int8)
    flat[1:-1] = columns.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + start * height
    ends = changes if len(changes) and changes[-1] == height * width else np.append(changes, height * width)
    return dict(size=[height, width], counts=compress_counts(np.diff(ends, prepend=0)))


def compress_counts(counts: np.ndarray) -> str:
    """Run lengths as COCO's text: differences to the count before the last, in groups of five bits, the lowest first.

    Bit 5 of a group says that another one follows, and bit 4 of the last one is the sign.
    """
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    groups, more = [], np.ones(len(values), bool)
    used = []
    while more.any():
        used.append(more)
        group = values & 31
        values = values >> 5
        more = more & (values != np.where(group & 16, -1, 0))
        groups.append(group + np.where(more, 32, 0) + 48)
    return np.stack(groups, 1)[np.stack(used, 1)].astype(np.uint8).tobytes().decode()


def read_ids(path: str | Path, metadata: 'Metadata', names: Sequence[str]) -> tuple[dict[str, int], list[int]]:
    """The ids of images by their names, and those of the labels, in a COCO annotation file.

    Raises:
        ValueError: If the file is no such file, or lacks an image or a class.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        images = {image['file_name']: image['id'] for image in content['images']}
        categories = {category['name']: category['id'] for category in content['categories']}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{str(path)!r} is not a COCO annotation file: {type(error).__name__} {error}') from error
    for kind, wanted, found in (('image', names, images), ('class', metadata.classes, categories)):
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f'{str(path)!r} has no {kind} {missing[0]!r}' + (
                f', nor {len(missing) - 1} others' if len(missing) > 1 else ''))
    return images, [categories[name] for name in metadata.classes]
