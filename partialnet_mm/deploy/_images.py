# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Reads and prepares images in numpy and Pillow as mmcv's test pipelines do with OpenCV."""
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

#: Interpolations of mmcv's two backends that are implemented.
INTERPOLATIONS = dict(
    cv2=('nearest', 'bilinear', 'bicubic'), pillow=('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos'))
EDGES = ('short', 'long', 'width', 'height')
#: OpenCV's fixed-point weights of 8-bit images.
ONE = 2048
#: Output rows that are resized at once: their intermediate sums stay in the cache.
ROWS = 64


class Prepared(NamedTuple):
    """An image (H, W, 3) for the network, and how it lies on the picture.

    A point (x, y) of the picture is (x, y) * scale - corner in the image.
    """

    image: np.ndarray
    scale: tuple[float, float] = (1., 1.)
    corner: tuple[float, float] = (0., 0.)


Step = Callable[[Prepared], Prepared]


def read_picture(source: str | os.PathLike | Image.Image | np.ndarray, exif: bool) -> np.ndarray:
    """A picture as (H, W, 3), RGB, uint8.

    Args:
        source: A file, an image of Pillow, or an array that has this form already.
        exif: Whether a file or image is turned as its EXIF orientation says.

    Raises:
        ValueError: If it cannot be read.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise ValueError('an image must be a file, an image of Pillow, or a uint8 array (height, width, 3) in RGB; '
                             f'got {source.dtype} {source.shape}')
        return source
    if isinstance(source, Image.Image):
        return _to_rgb(source, exif)
    size = os.path.getsize(source)
    if size == 0:
        raise ValueError('the file has 0 bytes')
    try:
        with Image.open(source) as image:
            return _to_rgb(image, exif)
    except Image.UnidentifiedImageError as error:
        raise ValueError('it is not an image that Pillow can read') from error
    except OSError as error:
        if 'truncated' in str(error):
            raise ValueError(f'the file is truncated ({size} bytes)') from error
        raise


def _to_rgb(image: Image.Image, exif: bool) -> np.ndarray:
    # Pillow gives 16 bits of PGM, and before 10.3 of PNG, as 32.
    has_16_bits = image.mode.startswith('I;16') or image.mode == 'I' and image.format in ('PNG', 'PPM')
    if image.mode in ('I', 'F') and not has_16_bits:
        raise ValueError(f'its pixels are numbers of 32 bits (mode {image.mode!r}), whose range from black to white is '
                         'unknown: convert it to 8 bits')
    if exif:
        image = ImageOps.exif_transpose(image)
    if has_16_bits:
        # Pillow cuts 16 bits at 255; OpenCV keeps the upper eight.
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    return np.array(image if image.mode == 'RGB' else image.convert('RGB'))


def make_step(step: Mapping) -> Step:
    """One step of the metadata's ``preprocessing``.

    Raises:
        ValueError: With the step, if it or an option of it is not known.
    """
    makers = dict(resize=_make_resize, resize_edge=_make_resize_edge, center_crop=_make_center_crop, pad=_make_pad)
    kind = step.get('type') if isinstance(step, Mapping) else None
    if kind not in makers:
        raise ValueError(f'preprocessing step {step!r} is not known; allowed types are {list(makers)}')
    options = {name: value for name, value in step.items() if name != 'type'}
    try:
        return makers[kind](**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f'preprocessing step {step!r}: {error}') from error


def _make_resize(size: Sequence[int], keep_ratio: bool, interpolation: str, backend: str) -> Step:
    width, height = _two_sides(size)
    _check_interpolation(interpolation, backend)

    def new_size(old: tuple[int, int]) -> tuple[int, int]:
        if not keep_ratio:
            return width, height
        factor = min(max(width, height) / max(old), min(width, height) / min(old))
        return int(old[0] * factor + 0.5), int(old[1] * factor + 0.5)

    return lambda prepared: _resized(prepared, new_size, interpolation, backend)


def _make_resize_edge(edge: str, size: int, interpolation: str, backend: str) -> Step:
    if edge not in EDGES:
        raise ValueError(f'edge must be one of {EDGES}, got {edge!r}')
    size, _ = _two_sides((size, size))
    _check_interpolation(interpolation, backend)

    def new_size(old: tuple[int, int]) -> tuple[int, int]:
        width, height = old
        if edge == 'width' or (edge == 'short' and width < height) or (edge == 'long' and width > height):
            return size, int(size * height / width)
        return int(size * width / height), size

    return lambda prepared: _resized(prepared, new_size, interpolation, backend)


def _make_center_crop(size: Sequence[int]) -> Step:
    width, height = _two_sides(size)

    def crop(prepared: Prepared) -> Prepared:
        image, scale, (left, top) = prepared
        x = max(0, round((image.shape[1] - width) / 2))
        y = max(0, round((image.shape[0] - height) / 2))
        return Prepared(image[y:y + height, x:x + width], scale, (left + x, top + y))

    return crop


def _make_pad(value: Sequence[int], size: Sequence[int] | None = None, divisor: int | None = None) -> Step:
    if (size is None) == (divisor is None):
        raise ValueError('either size or divisor must be given')
    if size is not None:
        least = _two_sides(size)
    else:
        divisor, _ = _two_sides((divisor, divisor))
    fill = np.array(value, np.uint8)
    if fill.shape != (3, ):
        raise ValueError(f'value must be three numbers, got {value!r}')

    def pad(prepared: Prepared) -> Prepared:
        height, width = prepared.image.shape[:2]
        new_width, new_height = least if divisor is None else (
            -(-width // divisor) * divisor, -(-height // divisor) * divisor)
        shape = max(height, new_height), max(width, new_width)
        if shape == (height, width):
            return prepared
        image = np.empty((*shape, 3), np.uint8)
        image[:height, :width], image[height:], image[:height, width:] = prepared.image, fill, fill
        return prepared._replace(image=image)

    return pad


def _two_sides(size: Sequence[int]) -> tuple[int, int]:
    if not isinstance(size, Sequence) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f'sizes must be whole numbers from 1 up, got {size!r}')
    return size[0], size[1]


def _check_interpolation(interpolation: str, backend: str) -> None:
    if backend not in INTERPOLATIONS:
        raise ValueError(f'backend must be one of {list(INTERPOLATIONS)}, got {backend!r}')
    if interpolation not in INTERPOLATIONS[backend]:
        raise ValueError(f'interpolation of backend {backend!r} must be one of {INTERPOLATIONS[backend]}, got '
                         f'{interpolation!r}')


def _resized(prepared: Prepared, new_size: Callable[[tuple[int, int]], tuple[int, int]], interpolation: str,
             backend: str) -> Prepared:
    height, width = prepared.image.shape[:2]
    new_width, new_height = new_size((width, height))
    if new_width < 1 or new_height < 1:
        raise ValueError(f'{width} x {height} pixels cannot be resized to {new_width} x {new_height}')
    factors = new_width / width, new_height / height
    scale, corner = (tuple(value * factor for value, factor in zip(pair, factors)) for pair in prepared[1:])
    return Prepared(resize(prepared.image, (new_width, new_height), interpolation, backend), scale, corner)


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str = 'bilinear',
           backend: str = 'cv2') -> np.ndarray:
    """Resizes an image (H, W, C) of uint8 to (width, height) as ``mmcv.imresize`` does.

    OpenCV's nearest and bilinear give the same values as OpenCV, its bicubic the same to one level of 255. Unlike
    Pillow's they sample between the nearest pixels also where they reduce an image.
    """
    height, width = image.shape[:2]
    if backend == 'pillow':
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling[interpolation.upper()]))
    if (width, height) == size:
        return image
    if interpolation == 'nearest':
        columns, rows = (np.minimum((np.arange(new) * (1 / (new / old))).astype(np.intp), old - 1)
                         for old, new in zip((width, height), size))
        return image[rows][:, columns]
    return _resize_fixed_point(image, size, interpolation)


def _resize_fixed_point(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """OpenCV's separable resizing of 8-bit images: columns in integers, then rows."""
    (height, width, channels), (new_width, new_height) = image.shape, size
    x, x_weights = _taps(width, new_width, interpolation)
    y, y_weights = _taps(height, new_height, interpolation)
    if interpolation == 'bilinear':
        # Beside the last column OpenCV takes that column alone. Of rows it adds the same one twice, each part rounded.
        x_weights[:, (x[0] < 0) | (x[0] >= width - 1)] = [[ONE], [0]]
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    # One index and one weight for each value of a row: numpy collects single values faster than pixels.
    x = (x[..., None] * channels + np.arange(channels)).reshape(len(x), -1)
    x_weights = np.repeat(x_weights, channels, axis=1)
    flat = np.ascontiguousarray(image).reshape(height, -1)
    resized = np.empty((new_height, new_width * channels), np.uint8)
    for start in range(0, new_height, ROWS):
        block = slice(start, start + ROWS)
        needed, where = np.unique(y[:, block], return_inverse=True)
        where = where.reshape(len(y), -1)
        lines = flat[needed]
        sums = lines.take(x[0], axis=1) * x_weights[0]
        for column, weight in zip(x[1:], x_weights[1:]):
            sums += lines.take(column, axis=1) * weight
        resized[block] = _sum_rows(sums, where, y_weights[:, block, None], interpolation)
    return resized.reshape(new_height, new_width, channels)


def _sum_rows(sums: np.ndarray, where: np.ndarray, weights: np.ndarray, interpolation: str) -> np.ndarray:
    if interpolation == 'bilinear':
        sums >>= 4
        above, below = (sums[row] for row in where)
        for rows, weight in zip((above, below), weights):
            rows *= weight
            rows >>= 16
        above += below
        above += 2
        above >>= 2
        return above
    sums = sums.astype(np.float32)
    weights = weights.astype(np.float32) / ONE**2
    return np.rint(sum(sums[row] * weight for row, weight in zip(where, weights))).clip(0, 255)


def _taps(old: int, new: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (taps, new) in a row of ``old`` pixels, or beside it, and their weights in units of 1/2048."""
    position = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(position)
    rest = position - first
    one = np.float32(1)
    if interpolation == 'bilinear':
        offsets, weights = np.arange(2), [one - rest, rest]
    else:
        offsets, a = np.arange(-1, 3), np.float32(-0.75)
        outer = ((a * (rest + 1) - 5 * a) * (rest + 1) + 8 * a) * (rest + 1) - 4 * a
        left, right = (((a + 2) * x - (a + 3)) * x * x + 1 for x in (rest, one - rest))
        weights = [outer, left, right, one - outer - left - right]
    return first.astype(np.intp) + offsets[:, None], np.rint(np.stack(weights) * np.float32(ONE)).astype(np.int32)
