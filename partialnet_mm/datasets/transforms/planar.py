# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Images whose memory holds one channel after the other, as a network takes them."""
import cv2
import numpy as np


def to_planar(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) in memory of the order (C, H, W).

    The steps that pack an image for the network need this order. They then copy nothing; their own conversion takes
    ten times as long as this one.
    """
    if image.ndim != 3 or _is_planar(image):
        return image
    planes = np.empty((image.shape[2], *image.shape[:2]), image.dtype)
    cv2.split(image, list(planes))
    return planes.transpose(1, 2, 0)


def to_interleaved(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) in memory of the same order, as OpenCV needs it."""
    if image.ndim == 3 and _is_planar(image):
        return cv2.merge(list(image.transpose(2, 0, 1))).reshape(image.shape)
    return np.ascontiguousarray(image)


def _is_planar(image: np.ndarray) -> bool:
    return image.transpose(2, 0, 1).flags.c_contiguous
