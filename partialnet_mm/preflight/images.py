# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks of image files."""
import os
from collections.abc import Sequence
from typing import TypeVar

from PIL import Image

from .findings import Finding

T = TypeVar('T')
#: The EXIF tag of an image's orientation, and its values that swap width and height.
ORIENTATION, ROTATED = 0x0112, (5, 6, 7, 8)


def check_image(path: str, size: tuple[int, int] | None = None) -> list[Finding]:
    """Decodes an image; returns one error, or nothing.

    ``size`` is width and height in the annotations, after the rotation by EXIF that OpenCV does.
    """
    if not os.path.exists(path):
        return [Finding('image missing', path, '', 'the file does not exist')]
    length = os.path.getsize(path)
    if length == 0:
        return [Finding('image empty', path, '', 'the file has 0 bytes')]
    try:
        with Image.open(path) as image:
            image.load()
            width, height = image.size
            if image.getexif().get(ORIENTATION) in ROTATED:
                width, height = height, width
    except Exception as error:  # Pillow raises many types for damaged files
        return [Finding('image broken', path, '', f'{length} bytes that do not decode: {error}')]
    if size is not None and (width, height) != size:
        return [Finding('image size', path, '',
                        f'it is {width} x {height}, but {size[0]} x {size[1]} in the annotations')]
    return []


def sample(items: Sequence[T], most: int | None) -> Sequence[T]:
    """At most ``most`` items, evenly spread; all items if it is None."""
    if most is None or len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]
