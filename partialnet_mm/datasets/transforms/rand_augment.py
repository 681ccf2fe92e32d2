# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""RandAugment with mmpretrain's random numbers and results, in a fraction of its time."""
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from .planar import to_interleaved, to_planar

#: One pixel of each level.
_LEVELS = np.arange(256, dtype=np.uint8)


@TRANSFORMS.register_module()
class FastRandAugment(BaseTransform):
    """RandAugment (https://arxiv.org/abs/1909.13719) with the operations, random numbers and results of mmpretrain's.

    mmpretrain's ``RandAugment`` draws the operations and their magnitudes. The pixels of a uint8 image (H, W, 3) are
    then computed by tables of 256 levels where the operation allows it; the result is the same bit by bit. Other
    images, and other operations, are left to the operation itself.

    The result has the shape (H, W, C) and planar memory, so that ``PackInputs`` copies nothing. Needs mmpretrain.

    Args:
        policies: 'timm_increasing', 'simple_increasing' or a list of operations as dicts.
        num_policies: Operations per image.
        magnitude_level: Of all operations.
        magnitude_std: Standard deviation of the magnitude, or 'inf' for an even distribution from 0 up. Defaults to 0.
        total_level: Largest magnitude. Defaults to 10.
        hparams: Arguments for all operations that take them. Defaults to None, which is ``dict(pad_val=128)``.
    """

    def __init__(self,
                 policies: str | list[dict],
                 num_policies: int,
                 magnitude_level: float,
                 magnitude_std: float | str = 0.0,
                 total_level: float = 10,
                 hparams: dict | None = None) -> None:
        from mmpretrain.datasets import transforms
        #: Draws the operations and holds them.
        self.augment = transforms.RandAugment(
            policies, num_policies, magnitude_level, magnitude_std, total_level,
            dict(pad_val=128) if hparams is None else hparams)
        # By the class itself: a subclass may compute something else.
        self._quick: dict[type, Callable[[Any, np.ndarray], np.ndarray]] = {
            getattr(transforms, name): function for name, function in _QUICK.items()}

    def transform(self, results: dict) -> dict:
        """Changes ``img``."""
        image = results['img']
        quick = self._quick if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 else {}
        results['img'] = to_interleaved(image)
        for index in self.augment.random_policy_indices():
            operation = self.augment.transforms[index]
            function = quick.get(type(operation))
            if function is None:
                results = operation(results)
            else:
                results['img'] = function(operation, results['img'])
        results['img'] = to_planar(results['img'])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.augment!r})'


def _by_level(operation: Any, image: np.ndarray) -> np.ndarray:
    """An operation that maps each level to one level: it runs on the 256 levels, and its result is the table."""
    levels = np.repeat(_LEVELS[None, :, None], 3, axis=2)
    table = operation(dict(img=levels))['img']
    return image if table is levels else cv2.LUT(image, table)


def _auto_contrast(operation: Any, image: np.ndarray) -> np.ndarray:
    if operation.random_disable():
        return image
    tables = []
    for plane in cv2.split(image):
        low, high, _, _ = cv2.minMaxLoc(plane)
        if low >= high:
            tables.append(_LEVELS)
            continue
        scale = 255.0 / (high - low)
        tables.append(np.clip(_LEVELS * scale - low * scale, 0, 255).astype(np.uint8))
    return cv2.LUT(image, np.stack(tables, axis=1)[None])


def _equalize(operation: Any, image: np.ndarray) -> np.ndarray:
    if operation.random_disable():
        return image
    tables = []
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).astype(np.int64).ravel()
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        if step == 0:
            tables.append(_LEVELS)
            continue
        table = np.concatenate(([0], (np.cumsum(counts) + step // 2)[:-1] // step))
        tables.append(np.minimum(table, 255).astype(np.uint8))
    return cv2.LUT(image, np.stack(tables, axis=1)[None])


def _signed_magnitude(operation: Any) -> float:
    return operation.random_negative(
        operation.random_magnitude() if operation.magnitude is None else operation.magnitude)


def _contrast(operation: Any, image: np.ndarray) -> np.ndarray:
    if operation.random_disable():
        return image
    factor = 1 + _signed_magnitude(operation)
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    mean = np.full(256, round(cv2.sumElems(gray)[0] / gray.size), np.float32)
    table = cv2.addWeighted(_LEVELS.astype(np.float32), factor, mean, 1 - factor, 0)
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))


def _color(operation: Any, image: np.ndarray) -> np.ndarray:
    if operation.random_disable():
        return image
    alpha = 1 + _signed_magnitude(operation)
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(image, alpha, gray, 1 - alpha, 0)


#: The other operations of the presets are as quick as OpenCV itself.
_QUICK = dict(
    AutoContrast=_auto_contrast, Brightness=_by_level, ColorTransform=_color, Contrast=_contrast, Equalize=_equalize,
    Solarize=_by_level, SolarizeAdd=_by_level)
