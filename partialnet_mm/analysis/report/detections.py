# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What a detector gets right and wrong: AP by class and size, precision and recall, and each object's fate."""
import contextlib
import io
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

#: The overlap from which a box counts as found.
IOU = 0.5


class AveragePrecision(NamedTuple):
    """COCO's figures of boxes."""

    #: (C, 6) in AP, AP50, AP75 and AP of small, medium and large boxes; NaN without objects.
    by_class: np.ndarray
    #: Precision at an overlap of 0.5 by recall and class, (101, C); -1 without objects.
    precision: np.ndarray
    recall: np.ndarray


class Fate(Enum):
    """What became of a box."""

    RIGHT = 'right'
    MISSED = 'missed'
    DOUBLED = 'doubled'
    WRONG_CLASS = 'wrong class'
    NOTHING = 'nothing there'


class Judged(NamedTuple):
    """A box and its fate; ``true_label`` or ``label`` is None where there is no object, or no prediction."""

    fate: Fate
    box: np.ndarray
    true_label: int | None
    label: int | None
    score: float


def average_precision(truth: np.ndarray, found: np.ndarray, sizes: np.ndarray, classes: int) -> AveragePrecision:
    """COCO's evaluation of boxes.

    Args:
        truth: (M, 7) in (image, x1, y1, x2, y2, label, ignored).
        found: (K, 7) in (image, x1, y1, x2, y2, label, score).
        sizes: (N, 2), width and height of the images.
        classes: Number of classes.
    """
    # mmdet brings it; trainings of classifiers do without it.
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def boxes(rows: np.ndarray) -> np.ndarray:
        return np.column_stack((rows[:, 1:3], rows[:, 3:5] - rows[:, 1:3]))

    coco, results = COCO(), COCO()
    images = [dict(id=number, width=int(width), height=int(height)) for number, (width, height) in enumerate(sizes)]
    categories = [dict(id=label, name=str(label)) for label in range(classes)]
    for target, rows in ((coco, truth), (results, found)):
        target.dataset = dict(images=images, categories=categories, annotations=[
            dict(id=number, image_id=int(row[0]), category_id=int(row[5]), bbox=box.tolist(),
                 area=float(box[2] * box[3]), **(dict(iscrowd=int(row[6])) if target is coco else
                                                 dict(iscrowd=0, score=float(row[6]))))
            for number, (row, box) in enumerate(zip(rows, boxes(rows)), start=1)])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        results.createIndex()
        evaluation = COCOeval(coco, results, 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
    # (overlaps, recalls, classes, sizes, detections per image)
    precision = evaluation.eval['precision'][..., -1]

    def mean(values: np.ndarray) -> np.ndarray:
        """Mean over overlaps and recalls of (T, R, C)."""
        flat = np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)
        return np.array([row[row > -1].mean() if (row > -1).any() else np.nan for row in flat])

    columns = [mean(precision[..., 0]), mean(precision[:1, ..., 0]), mean(precision[5:6, ..., 0]),
               *(mean(precision[..., size]) for size in (1, 2, 3))]
    return AveragePrecision(np.column_stack(columns), precision[0, ..., 0], evaluation.params.recThrs)


def by_image(rows: np.ndarray, images: int) -> list[np.ndarray]:
    """Rows whose first column is the number of their image, in its order, by image."""
    return np.split(rows, np.searchsorted(rows[:, 0], np.arange(1, images)))


def best_threshold(truth: np.ndarray, found: np.ndarray, images: int) -> float:
    """The score from which on predictions have the best F1, over all classes; 0.5 where nothing is right."""
    every = [judged for objects, boxes in zip(by_image(truth, images), by_image(found, images))
             for judged in judge(objects, boxes, 0.) if judged.label is not None]
    every.sort(key=lambda judged: -judged.score)
    if not any(judged.fate is Fate.RIGHT for judged in every):
        return 0.5
    right = np.cumsum([judged.fate is Fate.RIGHT for judged in every])
    f1 = 2 * right / (np.arange(1, len(every) + 1) + (truth[:, 6] == 0).sum())
    return every[int(f1.argmax())].score


def judge(truth: np.ndarray, found: np.ndarray, threshold: float) -> list[Judged]:
    """The fate of all annotated and predicted boxes of one image.

    Predictions are taken by falling score. One is right if it overlaps an object of its class that no better prediction
    has, by at least 0.5. The others are of the wrong class if they overlap an object of another class that no
    prediction has; doubled if the object is taken; otherwise there is nothing. An object that neither a right nor a
    wrong class has is missed. Predictions in regions that the annotations leave out are no error.

    Args:
        truth: (M, 7), as for :func:`average_precision`.
        found: (K, 7), likewise.
        threshold: Lowest score of a prediction.
    """
    objects, regions = truth[truth[:, 6] == 0], truth[truth[:, 6] != 0]
    found = found[found[:, 6] >= threshold]
    found = found[np.argsort(-found[:, 6], kind='stable')]
    overlap = overlaps(found[:, 1:5], objects[:, 1:5])
    taken: dict[int, int] = {}
    fates: dict[int, tuple[Fate, int | None]] = {}
    for number, row in enumerate(found):
        open_ = [index for index in np.flatnonzero((overlap[number] >= IOU) & (objects[:, 5] == row[5]))
                 if index not in taken]
        if open_:
            best = max(open_, key=lambda index: overlap[number, index])
            taken[best] = number
            fates[number] = Fate.RIGHT, int(objects[best, 5])
    inside = overlaps(found[:, 1:5], regions[:, 1:5], of_first=True)
    for number in range(len(found)):
        if number in fates:
            continue
        near = np.flatnonzero(overlap[number] >= IOU)
        open_ = [index for index in near if index not in taken]
        if open_:
            best = max(open_, key=lambda index: overlap[number, index])
            taken[best] = number
            fates[number] = Fate.WRONG_CLASS, int(objects[best, 5])
        elif len(near):
            fates[number] = Fate.DOUBLED, int(objects[near[overlap[number, near].argmax()], 5])
        elif not (inside[number] >= IOU).any():
            fates[number] = Fate.NOTHING, None
    judged = [Judged(fate, found[number, 1:5], true_label, int(found[number, 5]), float(found[number, 6]))
              for number, (fate, true_label) in sorted(fates.items())]
    return judged + [Judged(Fate.MISSED, row[1:5], int(row[5]), None, 0.)
                     for index, row in enumerate(objects) if index not in taken]


def overlaps(first: np.ndarray, second: np.ndarray, of_first: bool = False) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and (M, 4), or over the area of the first; (N, M)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (first, second)]
    whole = areas[0][:, None] if of_first else areas[0][:, None] + areas[1][None] - shared
    return shared / np.maximum(whole, np.finfo(float).tiny)


def confusion(judged: Sequence[Judged], classes: int) -> np.ndarray:
    """Objects by true and predicted class, (C + 1, C + 1): the last row is "nothing there", the last column "missed".

    Doubled predictions are in the last row, since their object has a prediction already.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for box in judged:
        row = classes if box.fate in (Fate.NOTHING, Fate.DOUBLED) else box.true_label
        counts[row, classes if box.label is None else box.label] += 1
    return counts
