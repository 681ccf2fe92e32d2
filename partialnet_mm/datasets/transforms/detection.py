# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Annotations and flips for instance segmentation with mmdet's results, in a fraction of its time."""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from .planar import to_planar

if TYPE_CHECKING:
    from mmdet.structures.mask import BitmapMasks

#: What mmdet takes for an object without a valid mask, which it ignores.
_NO_MASK = [np.zeros(6)]
_FLIP_CODES = dict(horizontal=1, vertical=0, diagonal=-1)


class SelectedMasks:
    """Masks of objects as polygons or run lengths, drawn once, at their final size.

    mmdet draws each mask at the size of the image file, and copies all of them when it resizes, flips and packs the
    image. Resizing to the nearest pixel and flipping select rows and columns; this class only remembers which.
    Indexing, or an attribute of mmdet's ``BitmapMasks`` that is not among those below, draws the masks as
    ``BitmapMasks``. They are those of mmdet, bit by bit.

    Args:
        rles: Compressed run lengths of pycocotools, one dict per object.
        height: Of the image file in pixels.
        width: Of the image file in pixels.

    Raises:
        ValueError: If a mask has another size.
    """

    def __init__(self, rles: list[dict], height: int, width: int) -> None:
        for rle in rles:
            if tuple(rle['size']) != (height, width):
                raise ValueError(f'masks must have the size of their image, {(height, width)}, '
                                 f'got a mask of {tuple(rle["size"])}')
        self._rles = rles
        self._rows = np.arange(height, dtype=np.int32)
        self._columns = np.arange(width, dtype=np.int32)

    @property
    def height(self) -> int:
        """In pixels."""
        return len(self._rows)

    @property
    def width(self) -> int:
        """In pixels."""
        return len(self._columns)

    def __len__(self) -> int:
        return len(self._rles)

    def rescale(self, scale: float | tuple[int, int], interpolation: str = 'nearest') -> SelectedMasks | BitmapMasks:
        """The masks at another size of the same ratio of width and height, as ``BitmapMasks.rescale``."""
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width), interpolation)

    def resize(self, out_shape: tuple[int, int], interpolation: str = 'nearest') -> SelectedMasks | BitmapMasks:
        """The masks at another height and width, as ``BitmapMasks.resize``."""
        if interpolation != 'nearest':
            return self[:].resize(out_shape, interpolation)
        height, width = out_shape
        # OpenCV itself selects, so that rows and columns are those that it selects from a mask.
        rows = cv2.resize(self._rows[:, None], (1, height), interpolation=cv2.INTER_NEAREST)
        columns = cv2.resize(self._columns[None], (width, 1), interpolation=cv2.INTER_NEAREST)
        return self._select(rows[:, 0], columns[0])

    def flip(self, flip_direction: str = 'horizontal') -> SelectedMasks:
        """The masks mirrored 'horizontal', 'vertical' or 'diagonal', as ``BitmapMasks.flip``.

        Raises:
            ValueError: If the direction is none of these.
        """
        if flip_direction not in _FLIP_CODES:
            raise ValueError(f'flip_direction must be one of {", ".join(_FLIP_CODES)}, got {flip_direction!r}')
        return self._select(self._rows if flip_direction == 'horizontal' else self._rows[::-1],
                            self._columns if flip_direction == 'vertical' else self._columns[::-1])

    def __getitem__(self, index: Any) -> BitmapMasks:
        from mmdet.structures.mask import BitmapMasks
        chosen = np.atleast_1d(np.arange(len(self))[index])
        masks = np.zeros((len(chosen), self.height, self.width), np.uint8)
        for mask, position in zip(masks, chosen):
            self._draw(self._rles[position], mask)
        return BitmapMasks(masks, self.height, self.width)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self[:])

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):  # also looked for while a copy is not complete
            raise AttributeError(f'{type(self).__name__} has no attribute {name!r}')
        return getattr(self[:], name)

    def _select(self, rows: np.ndarray, columns: np.ndarray) -> SelectedMasks:
        masks = SelectedMasks([], len(rows), len(columns))
        masks._rles, masks._rows, masks._columns = self._rles, rows, columns
        return masks

    def _draw(self, rle: dict, mask: np.ndarray) -> None:
        """Writes an object into an empty mask, in the rectangle that it covers."""
        from pycocotools import mask as mask_utils
        left, top, width, height = map(int, mask_utils.toBbox(rle))
        rows = np.flatnonzero((self._rows >= top) & (self._rows < top + height))
        columns = np.flatnonzero((self._columns >= left) & (self._columns < left + width))
        if len(rows) and len(columns):
            # Each column of what pycocotools draws is one piece of memory.
            drawn = mask_utils.decode(rle).T[self._columns[columns], top:top + height]
            mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] = cv2.transpose(drawn)[self._rows[rows] - top]


@TRANSFORMS.register_module()
class FastLoadAnnotations(BaseTransform):
    """Boxes, labels and masks of an image, as mmdet's ``LoadAnnotations``, with masks that are drawn once.

    mmdet's ``Resize``, ``RandomFlip`` and ``PackDetInputs`` take :class:`SelectedMasks` and give what they give with
    mmdet's masks, bit by bit; any other transform sees ``BitmapMasks``. Needs mmdet.

    Args:
        with_bbox: Whether to load boxes. Defaults to True.
        with_label: Whether to load labels. Defaults to True.
        with_mask: Whether to load masks. Defaults to False.
        box_type: mmdet's name of the class of boxes. Defaults to 'hbox'.
    """

    def __init__(self,
                 with_bbox: bool = True,
                 with_label: bool = True,
                 with_mask: bool = False,
                 box_type: str = 'hbox') -> None:
        from mmdet.datasets.transforms import LoadAnnotations
        self.annotations = LoadAnnotations(with_bbox=with_bbox, with_label=with_label, box_type=box_type)
        self.with_mask = with_mask

    def transform(self, results: dict) -> dict:
        """Adds ``gt_bboxes``, ``gt_bboxes_labels``, ``gt_ignore_flags`` and ``gt_masks``."""
        if self.with_mask:
            # First, since an object without a valid mask is ignored.
            results['gt_masks'] = self._load_masks(results)
        results = self.annotations(results)
        if self.with_mask:
            results['gt_ignore_flags'] = np.array(
                [instance['ignore_flag'] for instance in results.get('instances', [])], dtype=bool)
        return results

    def _load_masks(self, results: dict) -> SelectedMasks:
        from pycocotools import mask as mask_utils
        height, width = results['ori_shape']
        rles = []
        for instance in results.get('instances', []):
            mask = instance['mask']
            if isinstance(mask, list):
                mask = [np.asarray(polygon) for polygon in mask if len(polygon) % 2 == 0 and len(polygon) >= 6]
            elif not isinstance(mask.get('counts'), (list, str)) or mask.get('size') is None:
                mask = []
            if not mask:
                instance['ignore_flag'] = 1
                mask = _NO_MASK
            if isinstance(mask, list):
                mask = mask_utils.merge(mask_utils.frPyObjects(mask, height, width))
            elif isinstance(mask['counts'], list):
                mask = mask_utils.frPyObjects(mask, height, width)
            rles.append(mask)
        return SelectedMasks(rles, height, width)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.annotations!r}, with_mask={self.with_mask})'


@TRANSFORMS.register_module()
class FastRandomFlip(BaseTransform):
    """mmdet's ``RandomFlip`` as the last step before ``PackDetInputs``, with the same random numbers and results.

    The image gets the shape (H, W, C) and planar memory, so that ``PackDetInputs`` copies nothing. Needs mmdet.

    Args:
        prob: Probability of a flip, or a list of one per direction.
        direction: 'horizontal', 'vertical' or 'diagonal', or a list of them. Defaults to 'horizontal'.
    """

    def __init__(self, prob: float | list[float], direction: str | list[str] = 'horizontal') -> None:
        from mmdet.datasets.transforms import RandomFlip
        self.flip = RandomFlip(prob, direction)

    def transform(self, results: dict) -> dict:
        """Changes ``img`` and annotations, adds ``flip`` and ``flip_direction``."""
        image = results['img']
        results = self.flip(results)
        if results['flip']:
            image = cv2.flip(image, _FLIP_CODES[results['flip_direction']])
        results['img'] = to_planar(image)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.flip!r})'
