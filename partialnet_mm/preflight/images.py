# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks of image files, by the loader that the training uses."""
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mmcv.transforms import LoadImageFromFile
from PIL import Image

from .findings import Finding

T = TypeVar('T')
#: The EXIF tag of an image's orientation; 1 is upright, from 5 on width and height are swapped.
ORIENTATION = 0x0112


def check_image(path: str,
                size: tuple[int, int] | None = None,
                load: Callable[[dict], dict | None] | None = None,
                loaded: dict[str, Any] | None = None,
                info: dict[str, Any] | None = None) -> list[Finding]:
    """Reads an image as a pipeline does; returns one finding, or none.

    Args:
        path: The file.
        size: Width and height in the annotations, None if they have none. Defaults to None.
        load: The steps of a pipeline that load an image, from and to mmcv's dict of results. Defaults to
            ``LoadImageFromFile()``.
        loaded: A dict that gets what the pipeline has loaded, for further checks. Defaults to None.
        info: What the data set knows of the image besides its path. Defaults to None.

    Returns:
        An error if the image cannot be read, or has another size.
    """
    local = '://' not in path
    if local and not os.path.exists(path):
        return [Finding('image missing', path, '', 'the file does not exist')]
    length = os.path.getsize(path) if local else None
    if length == 0:
        return [Finding('image empty', path, '', 'the file has 0 bytes')]
    given = dict(info or {}, img_path=path)
    if size is not None:
        given.update(width=size[0], height=size[1])
    try:
        results = (load or LoadImageFromFile())(given)
    except Exception as error:  # each backend of mmcv raises other types
        # A loader of the user's own may ask for more than the check has.
        return [Finding('image broken', path, '', f'{length} bytes that do not decode: {shortened(error)}',
                        note=getattr(load, 'foreign', False))]
    if results is None:
        return [Finding('image broken', path, '', f'{length} bytes that do not decode; the pipeline skips the image',
                        note=True)]
    if loaded is not None:
        loaded.update(results)
    if size is None or 'img' not in results:
        return []
    height, width = results['img'].shape[:2]
    if (width, height) == size:
        return []
    text = f'it is {width} x {height}, but {size[0]} x {size[1]} in the annotations'
    if (height, width) == size and orientation(path) >= 5:
        text += ('; its EXIF orientation swaps them, and pipeline and annotations differ in whether they obey it: '
                 "color_type='color_ignore_orientation' reads the pixels as they are stored")
    return [Finding('image size', path, '', text)]


def orientation(path: str) -> int:
    """The EXIF orientation of an image, 1 where it has none."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow does not know the format, or refuses the size: EXIF is not in question
        return 1


def shortened(error: Exception) -> str:
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f'{text[:200]}...'


def sample(items: Sequence[T], most: int | None) -> Sequence[T]:
    """At most ``most`` items, evenly spread; all items if it is None."""
    if most is None or len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]
