# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""A small instance segmentation data set that is drawn, not downloaded."""
import json
from pathlib import Path

import cv2
import numpy as np

SHAPE_CLASSES = ('disc', 'box', 'triangle')

# The largest fraction of a shape that a later one may cover.
_MAX_COVERED = 0.1
# The smallest Euclidean distance of a shape's colour from the background's; the largest possible is 441.
_MIN_CONTRAST = 120


def write_shapes_dataset(root: str | Path, images: dict[str, int], size: int = 256, seed: int = 0) -> dict[str, int]:
    """Draws images of shapes on textured backgrounds, with COCO annotations.

    Each image shows one to four discs (ellipses), boxes and triangles of random size, angle and texture that partly
    cover each other. The same arguments give the same files.

    Args:
        root: Output folder: images go to ``root/<split>/``, annotations to ``root/annotations/instances_<split>.json``.
        images: Number of images of each split, e.g. ``dict(train=240, val=48)``.
        size: Height and width in pixels. Defaults to 256.
        seed: Seed of the random numbers. Defaults to 0.

    Returns:
        Number of objects of each split.

    Raises:
        ValueError: If ``size`` is below 64 or a split has no image.
    """
    if size < 64:
        raise ValueError(f'size must be at least 64 pixels, got {size}')
    empty = [split for split, count in images.items() if count < 1]
    if empty:
        raise ValueError(f'each split needs at least one image, got {images}')
    root = Path(root)
    objects = {}
    for index, (split, count) in enumerate(images.items()):
        rng = np.random.default_rng([seed, index])
        (root / split).mkdir(parents=True, exist_ok=True)
        coco: dict[str, list] = dict(
            images=[], annotations=[],
            categories=[dict(id=i + 1, name=name) for i, name in enumerate(SHAPE_CLASSES)])
        for image_id in range(1, count + 1):
            picture, shapes = _draw_image(rng, size)
            name = f'{image_id:05d}.jpg'
            cv2.imwrite(str(root / split / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
            coco['images'].append(dict(id=image_id, file_name=name, height=size, width=size))
            for category, mask in shapes:
                coco['annotations'].append(_annotate(len(coco['annotations']) + 1, image_id, category, mask))
        path = root / 'annotations' / f'instances_{split}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(coco))
        objects[split] = len(coco['annotations'])
    return objects


def _draw_image(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One picture (size, size, 3) in uint8 and the visible mask of each shape with its class index."""
    background = rng.uniform(30, 225, 3)
    picture = _texture(rng, size, background)
    shapes: list[tuple[int, np.ndarray]] = []
    areas: list[int] = []
    wanted = rng.integers(1, 5)
    for _ in range(4 * wanted):
        if len(shapes) == wanted:
            break
        category = int(rng.integers(len(SHAPE_CLASSES)))
        mask = _shape_mask(rng, size, category)
        visible = [(other, seen & ~mask) for other, seen in shapes]
        if any(seen.sum() < (1 - _MAX_COVERED) * area for (_, seen), area in zip(visible, areas)):
            continue
        shapes = [*visible, (category, mask)]
        areas.append(int(mask.sum()))
        # The edge is about one pixel wide, as in a photograph.
        alpha = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0.7)[..., None]
        colour = rng.uniform(30, 225, 3)
        while np.linalg.norm(colour - background) < _MIN_CONTRAST:
            colour = rng.uniform(30, 225, 3)
        picture = picture * (1 - alpha) + _texture(rng, size, colour) * alpha
    picture += rng.normal(0, 4, picture.shape)
    return picture.clip(0, 255).astype(np.uint8), shapes


def _texture(rng: np.random.Generator, size: int, colour: np.ndarray) -> np.ndarray:
    """A colour with clouds and stripes on it, (size, size, 3) in float64."""
    cells = int(rng.integers(3, 17))
    clouds = cv2.resize(rng.normal(0, 1, (cells, cells, 3)), (size, size), interpolation=cv2.INTER_CUBIC)
    rows, columns = np.mgrid[:size, :size]
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 30)
    stripes = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / period)
    return colour + rng.uniform(4, 14) * clouds + rng.uniform(0, 12) * stripes[..., None]


def _shape_mask(rng: np.random.Generator, size: int, category: int) -> np.ndarray:
    """The mask of one shape, (size, size) in bool."""
    centre = rng.uniform(0.2 * size, 0.8 * size, 2)
    radius = rng.uniform(0.13, 0.25) * size
    stretch = rng.uniform(0.75, 1.0)
    angle = rng.uniform(-0.3, 0.3)
    if SHAPE_CLASSES[category] == 'disc':
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    elif SHAPE_CLASSES[category] == 'box':
        angles = np.pi / 4 + np.arange(4) * np.pi / 2
    else:
        angles = -np.pi / 2 + np.arange(3) * 2 * np.pi / 3
    outline = np.stack((np.cos(angles), stretch * np.sin(angles)), axis=1) * radius
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.rint(outline @ rotation.T + centre).astype(np.int32)], 1)
    return mask.astype(bool)


def _annotate(annotation_id: int, image_id: int, category: int, mask: np.ndarray) -> dict:
    from pycocotools import mask as mask_utils  # installed with mmdet
    encoded = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(
        id=annotation_id, image_id=image_id, category_id=category + 1, area=float(mask_utils.area(encoded)), iscrowd=0,
        bbox=[float(value) for value in mask_utils.toBbox(encoded)],
        segmentation=dict(size=encoded['size'], counts=encoded['counts'].decode('ascii')))
