# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
from .shapes import SHAPE_CLASSES, write_shapes_dataset
from .transforms import (
    FastLoadAnnotations,
    FastRandAugment,
    FastRandomFlip,
    FastRandomResizedCrop,
    FastResizeEdge,
    SelectedMasks,
)

__all__ = [
    'FastLoadAnnotations', 'FastRandAugment', 'FastRandomFlip', 'FastRandomResizedCrop', 'FastResizeEdge',
    'SHAPE_CLASSES', 'SelectedMasks', 'write_shapes_dataset'
]
